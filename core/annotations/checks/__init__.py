"""What can be told of a data set beyond its annotation files: images, repeats, statistics, advice."""

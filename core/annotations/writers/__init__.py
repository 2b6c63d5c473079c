"""Writers of the formats that `prepare-data --export` makes."""

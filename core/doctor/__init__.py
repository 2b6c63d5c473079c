"""Whether this machine can do the work, part by part: what `dedetr doctor` prints."""

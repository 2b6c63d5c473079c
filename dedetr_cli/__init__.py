"""The `dedetr` command: parses, prints and exits; everything else happens in `core`."""

__version__ = "0.1.0"

"""Readers of the formats that `prepare-data` takes."""

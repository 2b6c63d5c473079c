"""Annotation files of every format, subsets, splits and prepared data sets. Knows no torch."""

"""Matching of queries to labels, and the losses."""

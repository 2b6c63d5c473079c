"""The six models: one table of specs, and the parts that it combines."""

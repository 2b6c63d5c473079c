"""Configuration: one schema, and the layers that fill it. Knows no torch."""

"""Training: the loop, its state, its checkpoints and its records."""

"""Data sets as tensors: reading, transforms, batches, order."""

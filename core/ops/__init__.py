"""Functions of tensors that models and losses share: boxes, RoI pooling, attention over RoIs, NMS."""

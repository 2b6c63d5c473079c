"""What a training run that starts from a detector's weights takes over from their file, and how it loads them."""

from __future__ import annotations

from pathlib import Path

from core.config.layers import Layer

_IMPLEMENTATION = {"attention", "roi_backend"}
"""Keys of the model that say how it is computed, not what it is."""


def weights_layer(path: Path, *, trust: bool = False) -> Layer:
    """Return the architecture that a weight file is of, as a layer of configuration.

    It holds the sections `model` and `backbone`: without the choice of implementations, and without the backbone's
    pretrained weights, which the file's own replace. A file of tensors alone tells nothing, and its layer is empty.

    Args:
        path: a run folder, a checkpoint, `model.pt`, or a `.pth` of the reference.
        trust: unpickle the file even if that could run code.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or holds no detector of ours.
    """
    from core.assembly import described_by
    from core.models.weights import read_weights
    from core.trainer.checkpoint import find_model_file

    origin = f"weights {path}"
    weights = read_weights(find_model_file(path), trust=trust)
    if not weights.is_reference and weights.config is None:
        return Layer({}, origin)
    config, _ = described_by(weights)
    # Norm and stem stand beside it, so that a backbone without pretrained weights does not take others.
    backbone = config.backbone.model_dump() | {"weights": None}
    return Layer({"model": config.model.model_dump(exclude=_IMPLEMENTATION), "backbone": backbone}, origin)

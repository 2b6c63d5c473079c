"""Non-maximum suppression."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import batched_nms

from core.ops.compiled import compiled_operators


def nms_per_class(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Drop every box that overlaps one of its class with a higher score by more than `iou_threshold`.

    Args:
        boxes_xyxy: (N, 4) in any unit.
        scores: (N,).
        labels: (N,) int64.
        iou_threshold: in [0, 1].

    Returns:
        (K,) int64, indices of the boxes that are kept, by falling score.

    Raises:
        MachineError: torchvision was installed without its compiled operators.
    """
    with compiled_operators():
        kept: Tensor = batched_nms(boxes_xyxy, scores, labels, iou_threshold)
    return kept

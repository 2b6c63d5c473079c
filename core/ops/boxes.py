"""Box formats and overlaps. Boxes are (..., 4) tensors; the format stands in every name."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Turn centre and size into two corners, in the same units; (..., 4) -> (..., 4)."""
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Turn two corners into centre and size, in the same units; (..., 4) -> (..., 4)."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def norm_to_px(boxes_norm: Tensor, sizes_hw: Tensor) -> Tensor:
    """Scale boxes of either format from shares of the image to pixels.

    Args:
        boxes_norm: (B, N, 4), divided by the image's width and height.
        sizes_hw: (B, 2) height and width in pixels.

    Returns:
        (B, N, 4) in pixels, not clipped.
    """
    height, width = sizes_hw.to(boxes_norm).unbind(-1)
    return boxes_norm * torch.stack([width, height, width, height], dim=-1)[:, None]


def area_of(boxes_xyxy: Tensor) -> Tensor:
    """Return the area of each box; (..., 4) -> (...)."""
    width, height = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).unbind(-1)
    return width * height


def _overlap(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and GIoU of boxes that broadcast against each other.

    A pair without area gives NaN in IoU, as in the reference; boxes of a model have positive sizes.
    """
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = area_of(a_xyxy) + area_of(b_xyxy) - intersection
    iou = intersection / union
    outer_low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    outer_high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (outer_high - outer_low).clamp(min=0).prod(-1)
    return iou, iou - (hull - union) / hull


def giou_pairwise(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the generalised IoU (Rezatofighi et al. 2019) of every a with every b, in [-1, 1].

    (..., N, 4), (..., M, 4) -> (..., N, M); leading dimensions broadcast.
    """
    return _overlap(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :])[1]


def giou_aligned(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the generalised IoU of each a with the b at its place; (..., 4), (..., 4) -> (...)."""
    return _overlap(a_xyxy, b_xyxy)[1]


def inverse_sigmoid(share: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logit of numbers in [0, 1], with both odds kept at or above `eps` (Deformable DETR)."""
    share = share.clamp(0, 1)
    return torch.log(share.clamp(min=eps) / (1 - share).clamp(min=eps))

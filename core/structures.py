"""The tensors that travel between the floors: batches of images, targets, model outputs, detections.

Boxes carry their format in the name. `cxcywh_norm`: centre and size divided by the un-padded image's width
and height. `xyxy_px`: two corners in pixels of the image named beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """Images of different sizes, padded at the bottom and right to one size.

    Attributes:
        pixels: (B, 3, H, W) float, normalised by mean and std, zero where padded.
        padding_mask: (B, H, W) bool, True where padded.
        sizes_hw: (B, 2) int64, un-padded height and width of each image in pixels.
    """

    pixels: Tensor
    padding_mask: Tensor
    sizes_hw: Tensor


@dataclass(frozen=True)
class Target:
    """What one image should be detected as.

    Attributes:
        boxes_cxcywh_norm: (N, 4) float in [0, 1].
        labels: (N,) int64 in 0..C-1.
        copy_index: (N,) int64, 0 for a label as annotated, 1, 2, ... for its copies by label augmentation;
            None where nothing was augmented.
    """

    boxes_cxcywh_norm: Tensor
    labels: Tensor
    copy_index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Target:
        """Return the target on a device."""
        copy_index = None if self.copy_index is None else self.copy_index.to(device, non_blocking=True)
        return replace(
            self,
            boxes_cxcywh_norm=self.boxes_cxcywh_norm.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            copy_index=copy_index,
        )


class ModelOutput(NamedTuple):
    """What a detector says for a batch, decoder layer by decoder layer (the last one is the answer).

    Attributes:
        logits: (L, B, Q, C + 1) with "no object" last for a softmax head, (L, B, Q, C) for a sigmoid head.
        boxes_cxcywh_norm: (L, B, Q, 4) in (0, 1).
    """

    logits: Tensor
    boxes_cxcywh_norm: Tensor


@dataclass(frozen=True)
class Detections:
    """What was found in one image.

    Attributes:
        boxes_xyxy_px: (N, 4) float, in pixels of the original image, not clipped.
        scores: (N,) float in [0, 1].
        labels: (N,) int64 in 0..C-1.
    """

    boxes_xyxy_px: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: Tensor) -> Detections:
        """Return the detections that `keep`, a mask or indices of dimension 1, names."""
        return Detections(self.boxes_xyxy_px[keep], self.scores[keep], self.labels[keep])

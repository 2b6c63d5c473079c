"""RoI tokens: the features inside a query's own box, cropped from every level of a pyramid (paper, 4.1 and 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torchvision.ops import roi_align

from core.errors import MachineError
from core.ops.compiled import compiled_operators
from core.ops.roi_table import RoiTable

SAMPLING_RATIO = 2
"""Sampling points along each side of a bin; their bilinear samples are averaged."""

RoiAlign = Callable[[Tensor, Tensor, int, float], Tensor]
"""(map (B, D, H, W), boxes (N, 5) of image index and xyxy_px, resolution, scale) -> (N, D, resolution, resolution)."""


@dataclass(frozen=True)
class FeaturePyramid:
    """Feature maps of the same images at several strides, each with its position embedding.

    It remembers how they are laid out for pooling, with their gradients even if first asked without: the maps must
    not change.

    Attributes:
        features: per level (B, D, Hl, Wl).
        positions: per level (B, D, Hl, Wl).
        strides: per level, image pixels from one cell to the next.
    """

    features: list[Tensor]
    positions: list[Tensor]
    strides: tuple[int, ...]

    @cached_property
    def planes(self) -> tuple[list[Tensor], list[Tensor]]:
        """All features and all positions laid out channel by channel, as RoIAlign reads them; once for all layers."""
        with torch.enable_grad():
            return [level.contiguous() for level in self.features], [level.contiguous() for level in self.positions]

    @cached_property
    def table(self) -> RoiTable:
        """All levels as one table of cells; laid out at first use, then the same for all decoder layers."""
        with torch.enable_grad():
            return RoiTable.build(self.features, self.positions, self.strides)


def pool_roi_tokens(
    pyramid: FeaturePyramid, boxes_xyxy_px: Tensor, resolution: int, backend: str = "torchvision"
) -> tuple[Tensor, Tensor]:
    """Crop each query's box from every level by RoIAlign (He et al. 2017; `aligned`, 2 x 2 samples a bin).

    Boxes are not clipped: a sampling point more than one cell outside a map reads zeros.

    Args:
        pyramid: levels of B images.
        boxes_xyxy_px: (B, Q, 4) in pixels of the padded images; Q may be 0. They get no gradient.
        resolution: bins along each side of a box.
        backend: whose RoIAlign to use, "torchvision" or "detectron2".

    Returns:
        Tokens and their positions, each (B, Q, levels x resolution^2, D) in the levels' own dtype, ordered by
        level, then row, then column. Gradients flow to features, and to positions that require them.

    Raises:
        MachineError: the backend is not installed, or not whole.
    """
    align = find_roi_align(backend)
    boxes = finite_boxes(boxes_xyxy_px)
    num_images, num_queries = boxes.shape[:2]
    image_index = torch.arange(num_images, device=boxes.device).repeat_interleave(num_queries)
    rois = torch.cat([image_index[:, None].to(boxes), boxes.flatten(0, 1)], dim=1)

    def crop(level: Tensor, stride: int) -> Tensor:
        # Half precision cannot tell neighbouring pixels of a large image apart.
        exact = torch.promote_types(level.dtype, torch.float32)
        crops = align(level.to(exact), rois.to(exact), resolution, 1 / stride).to(level.dtype)
        return torch.unflatten(crops.flatten(2).transpose(1, 2), 0, (num_images, num_queries))

    tokens, positions = (
        torch.cat([crop(level, stride) for level, stride in zip(levels, pyramid.strides, strict=True)], dim=2)
        for levels in pyramid.planes
    )
    return tokens, positions


def finite_boxes(boxes: Tensor) -> Tensor:
    """Return boxes to crop from, without gradient, zero where they are not finite.

    RoIAlign reads outside its memory where a box is NaN. The model's own boxes keep it, for the loss to find.
    """
    return boxes.detach().nan_to_num(0.0, posinf=0.0, neginf=0.0)


def find_roi_align(backend: str) -> RoiAlign:
    """Return the RoIAlign of a backend.

    Raises:
        MachineError: the backend is not installed.
    """
    return _detectron2_roi_align() if backend == "detectron2" else _torchvision_roi_align


def _torchvision_roi_align(level: Tensor, rois: Tensor, resolution: int, scale: float) -> Tensor:
    with compiled_operators():
        crops: Tensor = roi_align(level, rois, resolution, scale, SAMPLING_RATIO, aligned=True)
    return crops


def _detectron2_roi_align() -> RoiAlign:
    try:
        from detectron2.layers import ROIAlign
    except ImportError as error:
        is_absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("detectron2")
        raise MachineError(
            "detectron2 is not installed" if is_absent else f"detectron2 cannot be loaded: {error}",
            where="model.roi_backend",
            hint="python -m pip install 'git+https://github.com/facebookresearch/detectron2.git', "
            "or use model.roi_backend=torchvision, which gives the same numbers",
        ) from error

    def align(level: Tensor, rois: Tensor, resolution: int, scale: float) -> Tensor:
        crops: Tensor = ROIAlign((resolution, resolution), scale, SAMPLING_RATIO, aligned=True)(level, rois)
        return crops

    return align

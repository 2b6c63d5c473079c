"""Formats of boxes that are not COCO's own: guessed, and turned into it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from core.annotations.records import AnnotationSet

BoxFormat = Literal["xywh", "xyxy", "xywh-norm", "xyxy-norm"]
"""Left, top, width, height (xywh) or left, top, right, bottom (xyxy), in pixels or as shares of the image (norm)."""
BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)


def guess_box_format(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> BoxFormat | None:
    """Guess the format of boxes that should be `xywh`, (N, 4); None if they look right.

    Args:
        boxes: as they stand.
        sizes: width and height in pixels of each box's image, (N, 2).
    """
    if look_normalised(boxes, sizes):
        is_xyxy = look_like_edges(boxes * np.tile(sizes, 2), sizes)
        return "xyxy-norm" if is_xyxy else "xywh-norm"
    return "xyxy" if look_like_edges(boxes, sizes) else None


def as_xywh_px(annotations: AnnotationSet, box_format: BoxFormat) -> AnnotationSet:
    """Return annotations whose boxes stand in a format as COCO has them; areas become those of the boxes."""
    if box_format == "xywh":
        return annotations
    boxes = annotations.boxes_xywh_px.copy()
    if box_format.endswith("-norm"):
        boxes *= np.tile(annotations.image_sizes_wh_px[annotations.image_rows], 2)
    if box_format.startswith("xyxy"):
        boxes[:, 2:] -= boxes[:, :2]
    converted = tuple(
        structs.replace(annotation, box_xywh_px=tuple(box), area=box[2] * box[3])
        for annotation, box in zip(annotations.annotations, boxes.tolist(), strict=True)
    )
    return replace(annotations, annotations=converted)


def look_normalised(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> bool:
    """Guess whether boxes, (N, 4) of any format, are fractions of their images, whose width and height are (N, 2)."""
    is_fraction = ((boxes >= 0) & (boxes <= 1)).all() and (boxes % 1 != 0).any()
    return bool(is_fraction and (sizes > 2).all())


def look_like_edges(boxes_xywh_px: NDArray[np.float64], sizes: NDArray[np.float64]) -> bool:
    """Guess whether what should be left, top, width, height, (N, 4), are edges; see `look_normalised`."""
    if not len(boxes_xywh_px):
        return False
    starts, extents = boxes_xywh_px[:, :2], boxes_xywh_px[:, 2:]
    # Right boxes hardly ever leave the image by more than rounding; edges read as sizes do it as soon as the
    # object's centre is in the right or the lower half.
    leaves = (starts + extents > sizes + 2).any(axis=1)
    fits_as_edges = ((extents > starts) & (extents <= sizes + 1) & (starts >= 0)).all(axis=1)
    return bool(leaves.sum() >= max(3, 0.25 * len(boxes_xywh_px)) and fits_as_edges.mean() > 0.9)

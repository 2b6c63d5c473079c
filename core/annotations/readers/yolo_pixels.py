"""Boxes as YOLO writes them, fractions of the image as people see it, and the same boxes in pixels."""

from __future__ import annotations

from pathlib import Path

from core.annotations.images import read_header
from core.annotations.records import BoxXYWH

BoxCXCYWH = tuple[float, float, float, float]
"""Centre x, centre y, width, height as fractions of the image's sides."""

ROUNDING = 1e-3
"""How far labels that were rounded may reach out of the image, as a fraction of its side."""

# From stored pixels to upright ones: x and y change places, then x runs backwards, then y; by EXIF orientation.
_TURNS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
_INVERSE = {6: 8, 8: 6}


def size_and_turn(path: Path) -> tuple[int, int, int]:
    """Return the size that a record of an image should state, and how boxes on the upright image are turned to fit.

    A record states a size alone, and `core.annotations.images` follows the EXIF rotation of an image only if its sides
    tell. Where they do not (a photograph upside down, a square one) the record has to describe the stored pixels.

    Returns:
        Width and height in pixels, and an orientation for `to_stored`, 1 where boxes stay as they are.

    Raises:
        DataError: see `read_header`.
    """
    width, height, orientation = read_header(path)
    if width != height and _swaps(orientation):
        return height, width, 1
    return width, height, orientation


def turn_of_record(path: Path, size_wh_px: tuple[int, int]) -> int:
    """Return the orientation with which `to_upright` turns boxes on an image of this recorded size, 1 for none.

    Raises:
        DataError: see `read_header`.
    """
    width, height, orientation = read_header(path)
    return orientation if (width, height) == size_wh_px else 1


def to_upright(box_cxcywh_norm: BoxCXCYWH, orientation: int) -> BoxCXCYWH:
    """Turn a box on stored pixels into one on the upright image; orientation: EXIF's, 1 to 8."""
    if orientation == 1:
        return box_cxcywh_norm
    swaps, mirrors_x, mirrors_y = _TURNS[orientation]
    x, y, width, height = box_cxcywh_norm
    if swaps:
        x, y, width, height = y, x, height, width
    return (1 - x if mirrors_x else x), (1 - y if mirrors_y else y), width, height


def to_stored(box_cxcywh_norm: BoxCXCYWH, orientation: int) -> BoxCXCYWH:
    """Turn a box on the upright image into one on stored pixels."""
    return to_upright(box_cxcywh_norm, _INVERSE.get(orientation, orientation))


def to_pixels(box_cxcywh_norm: BoxCXCYWH, size_wh_px: tuple[int, int]) -> BoxXYWH | None:
    """Return left, top, width, height in pixels, or None if the box lies wholly outside the image.

    Edges that rounding has moved out of the image are put back on its border. Pixels are rounded to 1e-6, so that what
    `to_fractions` made of decimal numbers comes back as the same numbers.
    """
    spans: list[tuple[float, float]] = []
    for centre, extent, side in zip(box_cxcywh_norm[:2], box_cxcywh_norm[2:], size_wh_px, strict=True):
        start, end = (round((centre + half * extent) * side, 6) + 0.0 for half in (-0.5, 0.5))  # + 0.0: no -0.0
        if start >= side or end <= 0:
            return None
        margin = ROUNDING * side
        start = 0.0 if -margin <= start < 0 else start
        end = float(side) if side < end <= side + margin else end
        spans.append((start, round(end - start, 6)))
    (left, width), (top, height) = spans
    return left, top, width, height


def to_fractions(box_xywh_px: BoxXYWH, size_wh_px: tuple[int, int]) -> BoxCXCYWH | None:
    """Return the part of a box that is inside its image as fractions, or None if nothing of it is."""
    centres, extents = [], []
    for start, length, side in zip(box_xywh_px[:2], box_xywh_px[2:], size_wh_px, strict=True):
        low, high = max(start, 0.0), min(start + length, float(side))
        if low >= high:
            return None
        centres.append((low + high) / 2 / side)
        extents.append((high - low) / side)
    return centres[0], centres[1], extents[0], extents[1]


def _swaps(orientation: int) -> bool:
    return orientation in _TURNS and _TURNS[orientation][0]

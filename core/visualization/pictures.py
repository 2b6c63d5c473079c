"""Pictures as files: an image with what was found in it, or beside what should be."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from core.annotations.images import open_image
from core.files import unique_names, write_atomic
from core.structures import Detections
from core.visualization.draw import draw_detections, side_by_side

_JPEG_SUFFIXES = (".jpg", ".jpeg")
_MIN_SIDE, _MAX_SIDE = 400, 2000


def picture_paths(folder: Path, images: Sequence[Path]) -> list[Path]:
    """Return where the picture of each image goes: under its own name, numbered where names are equal."""
    names = unique_names([image.stem for image in images])
    return [folder / f"{name}{picture_suffix(image)}" for name, image in zip(names, images, strict=True)]


def picture_suffix(image: Path) -> str:
    """Return how the name of an image's picture ends: that of a JPEG file as JPEG, all others as PNG."""
    return ".jpg" if image.suffix.lower() in _JPEG_SUFFIXES else ".png"


def draw_prediction(image: Path, detections: Detections, class_names: Sequence[str], out: Path) -> None:
    """Write an image with its detections drawn on it; a small image is enlarged, so that labels can be read.

    Raises:
        DataError: the image cannot be read.
        MachineError: the picture cannot be written.
    """
    opened, scale = enlarged(open_image(image))
    boxes_xyxy_px = detections.boxes_xyxy_px * scale
    save_picture(draw_detections(opened, boxes_xyxy_px, detections.labels, detections.scores, class_names), out)


def draw_comparison(
    image: Path,
    boxes_xyxy_px: Tensor,
    labels: Tensor,
    detections: Detections,
    class_names: Sequence[str],
    out: Path,
) -> None:
    """Write an image twice, with its annotations (N, 4), (N,) on the left and its detections on the right.

    Raises:
        DataError: the image cannot be read.
        MachineError: the picture cannot be written.
    """
    opened, scale = enlarged(open_image(image))
    truth = draw_detections(opened, boxes_xyxy_px * scale, labels, None, class_names)
    boxes_found = detections.boxes_xyxy_px * scale
    found = draw_detections(opened, boxes_found, detections.labels, detections.scores, class_names)
    save_picture(side_by_side(truth, found, ("ground truth", "predictions")), out)


def enlarged(image: Image.Image, min_side: int = _MIN_SIDE) -> tuple[Image.Image, int]:
    """Return an image whose short side has about `min_side` pixels or more, and by what it was enlarged."""
    scale = max(1, min(round(min_side / min(image.size)), _MAX_SIDE // max(image.size)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC), scale


def save_picture(picture: Image.Image, out: Path) -> None:
    """Write a picture as JPEG or PNG, by the name's suffix.

    Raises:
        MachineError: it cannot be written.
    """
    content = io.BytesIO()
    if out.suffix.lower() in _JPEG_SUFFIXES:
        picture.save(content, format="JPEG", quality=92)
    else:
        picture.save(content, format="PNG")
    write_atomic(out, content.getvalue())

"""What was detected, cut out: one picture a detection, in a folder for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from core.annotations.images import open_image
from core.files import safe_name, unique_names
from core.structures import Detections
from core.visualization.pictures import save_picture


def crop_paths(
    folder: Path, images: Sequence[Path], detections: Sequence[Detections | None], class_names: Sequence[str]
) -> list[list[Path]]:
    """Return for each image where its crops go, one a detection: CLASS/NAME-1.jpg, NAME-2.jpg, ... by falling score.

    Classes of any name get folders of their own. Names of images are numbered where they are equal, as
    `picture_paths` does it.
    """
    class_folders = [folder / name for name in unique_names([safe_name(name) for name in class_names])]
    stems = unique_names([image.stem for image in images])
    return [
        [] if found is None else _numbered(stem, [class_folders[label] for label in found.labels.tolist()])
        for stem, found in zip(stems, detections, strict=True)
    ]


def _numbered(stem: str, folders: Sequence[Path]) -> list[Path]:
    return [folder / f"{stem}-{number}.jpg" for number, folder in enumerate(folders, start=1)]


def write_crops(image: Path, detections: Detections, paths: Sequence[Path]) -> None:
    """Write the part of an image in each box, grown to whole pixels, as JPEG.

    Raises:
        DataError: the image cannot be read.
        MachineError: a crop cannot be written.
    """
    opened = open_image(image)
    for (left, top, right, bottom), path in zip(detections.boxes_xyxy_px.tolist(), paths, strict=True):
        box = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
        save_picture(opened.crop(box), path)

"""What stands in an annotation file, as plain Python values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BoxXYWH = tuple[float, float, float, float]
"""Left, top, width, height in pixels, as COCO writes them."""


@dataclass(frozen=True, slots=True)
class Category:
    """A class of objects, under the id that its file gives it."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image as an annotation file lists it; width and height in pixels."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """One labelled box; `area` in square pixels (of the mask, where the file has one)."""

    id: int
    image_id: int
    category_id: int
    box_xywh_px: BoxXYWH
    area: float
    is_crowd: bool


@dataclass(frozen=True)
class AnnotationSet:
    """All of one annotation file, in the file's order."""

    images: tuple[ImageRecord, ...]
    annotations: tuple[Annotation, ...]
    categories: tuple[Category, ...]

    def by_image(self) -> dict[int, list[Annotation]]:
        """Return the annotations of every image id; an empty list for an image without objects."""
        grouped: dict[int, list[Annotation]] = {image.id: [] for image in self.images}
        for annotation in self.annotations:
            grouped[annotation.image_id].append(annotation)
        return grouped


@dataclass(frozen=True)
class Split:
    """One part of a data set: which annotations, and the folder that their file names are below."""

    name: str
    annotation_file: Path
    image_root: Path


@dataclass(frozen=True)
class PreparedDataset:
    """A data set as every command reads it: made by `prepare-data`, or a plain COCO or Cityscapes layout.

    Attributes:
        root: its folder.
        name: a short name for people.
        classes: categories by rising id; the position of a class here is its label in tensors.
        splits: by name: train, val, perhaps test.
        recipe: a preset's name that the data set recommends, or None.
    """

    root: Path
    name: str
    classes: tuple[Category, ...]
    splits: Mapping[str, Split] = field(default_factory=dict)
    recipe: str | None = None

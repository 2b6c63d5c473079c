"""What stands in an annotation file, as plain Python values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from operator import attrgetter
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

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


class Annotation(Struct, frozen=True, gc=False):
    """One labelled box; `area` in square pixels (of the mask, where the file has one).

    A file has a million of them: a Struct is made ten times faster than a dataclass, takes less memory, and is no work
    for the garbage collector. `msgspec.structs.replace` changes one.
    """

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

    @cached_property
    def image_rows(self) -> NDArray[np.int64]:
        """The position in `images` of every annotation's image, (N,); a KeyError names an id that no image has."""
        listed = np.fromiter(map(attrgetter("id"), self.images), np.int64, len(self.images))
        wanted = np.fromiter(map(attrgetter("image_id"), self.annotations), np.int64, len(self.annotations))
        order = np.argsort(listed)  # sorting is several times faster than a dictionary
        places = np.searchsorted(listed, wanted, sorter=order)
        found = places < len(listed)
        found[found] = listed[order[places[found]]] == wanted[found]
        if not found.all():
            raise KeyError(int(wanted[~found][0]))
        return order[places]

    @cached_property
    def boxes_xywh_px(self) -> NDArray[np.float64]:
        """The boxes of all annotations, (N, 4)."""
        values = chain.from_iterable(map(attrgetter("box_xywh_px"), self.annotations))
        return np.fromiter(values, np.float64, 4 * len(self.annotations)).reshape(-1, 4)

    @cached_property
    def image_sizes_wh_px(self) -> NDArray[np.float64]:
        """Width and height of every image, (M, 2)."""
        return np.array([(image.width, image.height) for image in self.images], dtype=np.float64).reshape(-1, 2)

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

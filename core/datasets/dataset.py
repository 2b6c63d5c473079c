"""Annotated images as a PyTorch data set: one sample is pixels and a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from core.annotations.images import open_image
from core.annotations.records import AnnotationSet, Category
from core.datasets.image_cache import ImageCache
from core.datasets.seeds import derived_generator
from core.datasets.transforms import Normalisation, TransformedImage, clip_boxes
from core.errors import DataError, DedetrError
from core.files import join_within
from core.structures import Target

Transform = Callable[[Tensor, Tensor, Tensor, "torch.Generator | None"], TransformedImage]
"""(image (3, H, W) uint8, boxes_xyxy_px (N, 4), labels (N,), generator) -> what the model sees."""


@dataclass(frozen=True)
class Sample:
    """One image, ready for a batch.

    Attributes:
        pixels: (3, h, w) uint8, RGB; not to be written to.
        target: boxes as shares of the image, and labels.
        image_id: its id in the annotation file.
        original_size_hw: height and width in pixels before any transform.
        normalisation: what pixels still need before a model sees them.
        file_name: as in the annotation file; empty where there is none.
    """

    pixels: Tensor
    target: Target
    image_id: int
    original_size_hw: tuple[int, int]
    normalisation: Normalisation
    file_name: str = ""


class DetectionDataset(Dataset[Sample]):
    """The images of an annotation file and their boxes.

    Boxes are clipped to their image, and those without an area are dropped. An image without objects has
    boxes of shape (0, 4).

    Args:
        annotations: images and boxes.
        image_root: the folder that the file names are below.
        classes: the position of a category here is its label, 0..C-1.
        transform: applied to every image, see `core.datasets.transforms`.
        seed: of the augmentation.
        drop_crowds: leave out boxes that stand for a crowd, as training does.

    Attributes:
        cache: where decoded images are kept; None: nowhere.

    Raises:
        DataError: an annotation's category is none of the classes, or its image is not listed.
    """

    cache: ImageCache | None = None

    def __init__(
        self,
        annotations: AnnotationSet,
        image_root: Path,
        classes: Sequence[Category],
        transform: Transform,
        *,
        seed: int,
        drop_crowds: bool,
    ) -> None:
        self.images = annotations.images
        self.image_root = image_root
        self.classes = tuple(classes)
        self.transform = transform
        self.seed = seed
        boxes = pack_boxes(annotations, classes, drop_crowds=drop_crowds)
        self._boxes_xyxy_px, self._labels, self._first = boxes

    def __len__(self) -> int:
        return len(self.images)

    def taken_evenly(self, count: int) -> list[int]:
        """Return the indices of `count` images, or of all where there are fewer, spread over the whole set."""
        count = min(count, len(self))
        return [position * len(self) // count for position in range(count)]

    def annotated(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the boxes (N, 4) as xyxy in original pixels, and labels (N,), of the image at `index`."""
        rows = slice(int(self._first[index]), int(self._first[index + 1]))
        return self._boxes_xyxy_px[rows], self._labels[rows]

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Return the image at `index` as epoch `epoch` sees it; `key` is (epoch, index).

        Raises:
            DataError: the image is missing, damaged, or not of the size that its annotations state.
        """
        epoch, index = key
        record = self.images[index]
        image = self._decoded(index) if self.cache is None else self.cache.get(index, self._decoded)
        boxes_xyxy_px, labels = self.annotated(index)
        generator = derived_generator("augmentation", self.seed, epoch, index)
        pixels, boxes_cxcywh_norm, labels, normalisation = self.transform(image, boxes_xyxy_px, labels, generator)
        target = Target(boxes_cxcywh_norm, labels)
        size_hw = (record.height, record.width)
        return Sample(pixels, target, record.id, size_hw, normalisation, record.file_name)

    def _decoded(self, index: int) -> Tensor:
        """Return the image at `index` as its file has it: (3, H, W) uint8, channels-last in memory."""
        record = self.images[index]
        try:
            image = open_image(join_within(self.image_root, record.file_name), (record.width, record.height))
        except DedetrError as error:
            error.message = f"{error.message} (image id {record.id})"
            raise
        pixels: Tensor = functional.pil_to_tensor(image)
        return pixels


def pack_boxes(
    annotations: AnnotationSet, classes: Sequence[Category], *, drop_crowds: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out all usable boxes of an annotation file one after the other, image by image.

    Three tensors instead of a million small objects: worker processes share them without copying.

    Returns:
        boxes_xyxy_px (N, 4) float32, labels (N,) int64, and (num_images + 1,) int64 with the row at which each
        image begins.

    Raises:
        DataError: an annotation's category is none of the classes, or its image is not listed.
    """
    label_of = {category.id: label for label, category in enumerate(classes)}
    num_annotations = len(annotations.annotations)
    category_ids = map(attrgetter("category_id"), annotations.annotations)
    labels = np.fromiter(map(label_of.get, category_ids, repeat(-1)), np.int64, num_annotations)
    rows = _image_rows(annotations)
    order = np.argsort(rows, kind="stable")
    if drop_crowds:
        is_crowd = np.fromiter(map(attrgetter("is_crowd"), annotations.annotations), bool, num_annotations)
        order = order[~is_crowd[order]]
    unknown = order[labels[order] < 0]
    if len(unknown):
        raise _unknown_category(annotations, int(unknown[0]), classes)
    boxes_xyxy_px = annotations.boxes_xywh_px[order]
    boxes_xyxy_px[:, 2:] += boxes_xyxy_px[:, :2]
    sizes_hw = torch.from_numpy(annotations.image_sizes_wh_px[:, ::-1].astype(np.int64))
    row_of = torch.from_numpy(rows[order])
    boxes, kept = clip_boxes(torch.from_numpy(boxes_xyxy_px).float(), sizes_hw[row_of])
    num_boxes = torch.bincount(row_of[kept], minlength=len(sizes_hw))
    first = torch.cat([torch.zeros(1, dtype=torch.int64), num_boxes.cumsum(0)])
    return boxes, torch.from_numpy(labels[order])[kept], first


def _image_rows(annotations: AnnotationSet) -> NDArray[np.int64]:
    try:
        return annotations.image_rows
    except KeyError as error:
        raise DataError(f"an annotation names image id {error.args[0]}, which is not listed") from None


def _unknown_category(annotations: AnnotationSet, position: int, classes: Sequence[Category]) -> DataError:
    annotation, image = annotations.annotations[position], annotations.images[int(annotations.image_rows[position])]
    known = ", ".join(f"{category.id} {category.name}" for category in classes)
    return DataError(
        f"category id {annotation.category_id} is none of the classes",
        where=f"annotation {annotation.id} of {image.file_name}",
        hint=f"classes: {known}",
    )

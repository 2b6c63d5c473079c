"""COCO annotation files: read with every check, written the same way every time."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from core.annotations.coco_document import (
    LARGEST,
    CocoAnnotation,
    CocoCategory,
    CocoDocument,
    CocoImage,
    Fields,
    fields_of,
    read_document,
)
from core.annotations.findings import Findings, count_findings, refuse
from core.annotations.images import MAX_PIXELS
from core.annotations.json_values import MAX_ID, kind, shown, text, whole
from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.errors import DataError
from core.files import NamesWithin, write_atomic


def read_coco(path: Path, image_root: Path | None = None, *, allow_unlisted: bool = False) -> AnnotationSet:
    """Read and check a COCO detection file; see `inspect_coco`, which also returns what it noticed."""
    return inspect_coco(path, image_root, allow_unlisted=allow_unlisted)[0]


def inspect_coco(
    path: Path, image_root: Path | None = None, *, allow_unlisted: bool = False
) -> tuple[AnnotationSet, Findings]:
    """Read and check a COCO detection file. Images are not opened.

    Args:
        path: the JSON file.
        image_root: the folder that its file names are below; by default the file's own folder.
        allow_unlisted: leave out annotations of images that the file does not list, however few they are. A
            file most of whose annotations are such is a subset in the style of the DE-DETR reference
            (fewer images, all annotations) and is accepted in any case.

    Returns:
        The annotations as they stand (boxes are not clipped) without boxes of zero width or height, and what
        was noticed.

    Raises:
        DataError: the file is missing, no JSON, no COCO detection file, or contradicts itself.
    """
    return check_coco(read_document(path), image_root, allow_unlisted=allow_unlisted)


def check_coco(
    document: CocoDocument, image_root: Path | None = None, *, allow_unlisted: bool = False
) -> tuple[AnnotationSet, Findings]:
    """Check a file that was taken apart as `inspect_coco` does."""
    categories = read_categories(document)
    images = _read_images(document, document.path.parent if image_root is None else image_root)
    if document.annotations and not categories:
        raise DataError("there are annotations, but no categories", where=f"{document.path}: categories")
    annotations, indices = _read_annotations(document, images, {category.id for category in categories}, allow_unlisted)
    checked = _check_boxes(AnnotationSet(images, annotations, categories), indices, document.path)
    return checked, count_findings(
        checked,
        zero_size_boxes=len(annotations) - len(checked.annotations),
        unlisted_annotations=len(document.annotations) - len(annotations),
    )


def read_categories(document: CocoDocument) -> tuple[Category, ...]:
    """Return the categories of a file, and check no more than them."""
    categories: list[Category] = []
    index_of_id: dict[int, int] = {}
    index_of_name: dict[str, int] = {}
    for index, entry in enumerate(document.categories):
        item, place = fields_of(entry), f"{document.path}: categories[{index}]"
        ident, name = whole(item.get("id"), f"{place}.id"), text(item.get("name"), f"{place}.name")
        if ident in index_of_id:
            raise DataError(f"the category id {ident} is used already by categories[{index_of_id[ident]}]", where=place)
        if name in index_of_name:
            raise DataError(
                f"the category name {name!r} is used already by categories[{index_of_name[name]}]",
                where=place,
                hint="give every class its own name, or merge the two classes",
            )
        index_of_id[ident] = index_of_name[name] = index
        categories.append(Category(ident, name))
    return tuple(categories)


def _read_images(document: CocoDocument, image_root: Path) -> tuple[ImageRecord, ...]:
    images: list[ImageRecord] = []
    names = NamesWithin(image_root)
    index_of_id: dict[int, int] = {}
    for index, entry in enumerate(document.images):
        item, place = fields_of(entry), f"{document.path}: images[{index}]"
        ident = whole(item.get("id"), f"{place}.id")
        file_name = text(item.get("file_name"), f"{place}.file_name")
        width, height = (whole(item.get(side), f"{place}.{side}", least=1) for side in ("width", "height"))
        if width * height > MAX_PIXELS:
            raise DataError(f"{width} x {height} pixels are more than the {MAX_PIXELS} that are read", where=place)
        if ident in index_of_id:
            earlier = index_of_id[ident]
            raise DataError(
                f"the image id {ident} ({file_name!r}) is used already by images[{earlier}] "
                f"({images[earlier].file_name!r})",
                where=place,
            )
        try:
            names.require(file_name)
        except DataError as error:
            raise DataError(error.message, where=f"{place}.file_name", hint=error.hint) from error
        index_of_id[ident] = index
        images.append(ImageRecord(ident, file_name, width, height))
    return tuple(images)


def _read_annotations(
    document: CocoDocument, images: Sequence[ImageRecord], category_ids: set[int], allow_unlisted: bool
) -> tuple[tuple[Annotation, ...], Sequence[int]]:
    """Return the annotations of listed images, and the position of each in the file."""
    path = document.path
    own_id = {image.id: image.id for image in images}  # one number for all annotations of an image
    index_of_id: dict[int, int] = {}
    kept: list[Annotation] = []
    indices, unlisted, unknown = array("q"), array("q"), array("q")
    for index, entry in enumerate(document.annotations):
        item = entry if isinstance(entry, CocoAnnotation) else _read_references(entry, f"{path}: annotations[{index}]")
        if index_of_id.setdefault(item.id, index) != index:
            raise DataError(
                f"the annotation id {item.id} is used already by annotations[{index_of_id[item.id]}]",
                where=f"{path}: annotations[{index}]",
                hint="give every annotation its own id",
            )
        if item.image_id not in own_id:
            unlisted.append(index)
        elif item.category_id not in category_ids:
            unknown.append(index)
        else:
            indices.append(index)
            if isinstance(entry, CocoAnnotation):
                area = entry.bbox[2] * entry.bbox[3] if entry.area is UNSET else entry.area
                kept.append(
                    Annotation(item.id, own_id[item.image_id], item.category_id, entry.bbox, area, entry.iscrowd == 1)
                )
            else:
                kept.append(_read_annotation(entry, f"{path}: annotations[{index}]"))
    if max(index_of_id, default=0) > MAX_ID or min(index_of_id, default=0) < -MAX_ID:
        raise DataError("annotation ids must fit into 64 bits", where=f"{path}: annotations")
    _check_references(document, unlisted, unknown, allow_unlisted)
    return tuple(kept), indices


class _References(NamedTuple):
    id: int
    image_id: int
    category_id: int


def _read_references(item: Fields, place: str) -> _References:
    ident, image_id, category_id = item.get("id"), item.get("image_id"), item.get("category_id")
    if type(ident) is not int or type(image_id) is not int or type(category_id) is not int:
        for key in ("id", "image_id", "category_id"):
            whole(item.get(key), f"{place}.{key}")
    return _References(item["id"], item["image_id"], item["category_id"])


def _read_annotation(item: Fields, place: str) -> Annotation:
    """Check one annotation's own values; its place in the image comes later, for all boxes at once."""
    box = item.get("bbox")
    if type(box) is not list or len(box) != 4:
        raise DataError(
            "must be four numbers [left, top, width, height] in pixels, is "
            + (f"a list of {len(box)}" if type(box) is list else kind(box)),
            where=f"{place}.bbox",
        )
    for value in box:
        if type(value) not in (int, float) or not -LARGEST < value < LARGEST:
            raise DataError(f"must be four finite numbers, has {shown(value)}", where=f"{place}.bbox")
    left, top, width, height = box
    area = item.get("area", width * height)
    if type(area) not in (int, float) or not -(LARGEST**2) < area < LARGEST**2:
        raise DataError(f"must be a finite number, is {shown(area)}", where=f"{place}.area")
    is_crowd = item.get("iscrowd", 0)
    if is_crowd not in (0, 1):
        raise DataError(f"must be 0 or 1, is {shown(is_crowd)}", where=f"{place}.iscrowd")
    return Annotation(
        item["id"],
        item["image_id"],
        item["category_id"],
        (float(left), float(top), float(width), float(height)),
        float(area),
        bool(is_crowd),
    )


def _check_references(
    document: CocoDocument, unlisted: Sequence[int], unknown: Sequence[int], allow_unlisted: bool
) -> None:
    path, num_annotations = document.path, len(document.annotations)
    if unknown:
        ids = sorted({document.references(position)[1] for position in unknown})
        raise refuse(
            path,
            [f"annotations[{index}].category_id" for index in unknown],
            f"the category id {ids[0]} is not among the categories"
            if len(ids) == 1
            else f"category ids such as {ids[0]} and {ids[1]} are not among the categories",
        )
    # The reference's subset files list some images and keep all annotations. A file none of whose annotations
    # fits its images is something else.
    is_subset = 2 * len(unlisted) > num_annotations and len(unlisted) < num_annotations
    if unlisted and not allow_unlisted and not is_subset:
        raise refuse(
            path,
            [f"annotations[{index}].image_id" for index in unlisted],
            f"the image id {document.references(unlisted[0])[0]} is not among the images",
            "remove these annotations, or list their images",
        )


def _check_boxes(annotations: AnnotationSet, indices: Sequence[int], path: Path) -> AnnotationSet:
    """Refuse boxes that cannot be right, and return the others without those of zero size."""
    if not annotations.annotations:
        return annotations
    boxes_xywh_px = annotations.boxes_xywh_px
    sizes = annotations.image_sizes_wh_px[annotations.image_rows]
    starts, extents = boxes_xywh_px[:, :2], boxes_xywh_px[:, 2:]

    def places(wrong: NDArray[np.bool_]) -> list[str]:
        return [f"annotations[{indices[position]}].bbox" for position in np.flatnonzero(wrong).tolist()]

    negative: NDArray[np.bool_] = np.any(extents < 0, axis=1)
    if negative.any():
        first = annotations.annotations[int(np.argmax(negative))]
        raise refuse(path, places(negative), f"negative width or height: {_box_text(first.box_xywh_px)}")
    guess = _wrong_box_format(boxes_xywh_px, sizes)
    if guess:
        raise DataError(
            f"the boxes look {guess}, not like left, top, width, height in pixels",
            where=f"{path}: annotations[{indices[0]}].bbox",
            hint='write each "bbox" as [left, top, width, height] in pixels',
        )
    has_size: NDArray[np.bool_] = np.all(extents > 0, axis=1)
    outside = has_size & np.any((starts >= sizes) | (starts + extents <= 0), axis=1)
    if outside.any():
        position = int(np.argmax(outside))
        first, (width, height) = annotations.annotations[position], sizes[position].astype(int)
        raise refuse(
            path,
            places(outside),
            f"the box {_box_text(first.box_xywh_px)} lies wholly outside its image of {width} x {height} pixels",
        )
    if has_size.all():
        return annotations
    return replace(annotations, annotations=tuple(compress(annotations.annotations, has_size.tolist())))


def _wrong_box_format(boxes_xywh_px: NDArray[np.float64], sizes: NDArray[np.float64]) -> str | None:
    """Guess whether boxes are edges (x1, y1, x2, y2) or fractions of the image; None if they look right."""
    starts, extents = boxes_xywh_px[:, :2], boxes_xywh_px[:, 2:]
    is_fraction = ((boxes_xywh_px >= 0) & (boxes_xywh_px <= 1)).all() and (boxes_xywh_px % 1 != 0).any()
    if is_fraction and (sizes > 2).all():
        return "normalised to 0 ... 1"
    # Right boxes hardly ever leave the image by more than rounding; edges read as sizes do it as soon as the
    # object's centre is in the right or the lower half.
    leaves = (starts + extents > sizes + 2).any(axis=1)
    fits_as_edges = ((extents > starts) & (extents <= sizes + 1) & (starts >= 0)).all(axis=1)
    if leaves.sum() >= max(3, 0.25 * len(boxes_xywh_px)) and fits_as_edges.mean() > 0.9:
        return "like edges x1, y1, x2, y2"
    return None


def write_coco(path: Path, annotations: AnnotationSet) -> None:
    """Write a COCO file; equal annotations give equal bytes.

    Raises:
        MachineError: the folder cannot be written.
    """
    content = {
        "info": {},  # pycocotools' loadRes asks for it
        "images": [CocoImage(image.id, image.file_name, image.width, image.height) for image in annotations.images],
        "annotations": [
            CocoAnnotation(
                annotation.id,
                annotation.image_id,
                annotation.category_id,
                annotation.box_xywh_px,
                annotation.area,
                1 if annotation.is_crowd else 0,
            )
            for annotation in annotations.annotations
        ],
        "categories": [CocoCategory(category.id, category.name) for category in annotations.categories],
    }
    write_atomic(path, msgspec.json.encode(content) + b"\n")


def _box_text(box_xywh_px: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box_xywh_px) + "]"

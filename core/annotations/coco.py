"""COCO annotation files: read with every check, written the same way every time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from core.annotations.findings import Findings, count_findings, refuse
from core.annotations.images import MAX_PIXELS
from core.annotations.json_values import MAX_ID, kind, load_json, shown, text, whole
from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.errors import DataError
from core.files import join_within, write_atomic

SECTIONS = ("images", "annotations", "categories")
_LARGEST = 1e9
"""Beyond any coordinate or area in pixels; NaN and infinity fail the same comparison."""


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
    return check_coco(load_json(path), path, image_root, allow_unlisted=allow_unlisted)


def check_coco(
    raw: Any, path: Path, image_root: Path | None = None, *, allow_unlisted: bool = False
) -> tuple[AnnotationSet, Findings]:
    """Check parsed JSON as `inspect_coco` does; `path` names it in errors."""
    _require_sections(raw, path)
    categories = _categories(raw["categories"], path)
    images = _read_images(raw["images"], path, path.parent if image_root is None else image_root)
    if raw["annotations"] and not categories:
        raise DataError("there are annotations, but no categories", where=f"{path}: categories")
    annotations, zero_size, unlisted = _read_annotations(
        raw["annotations"], images, {category.id for category in categories}, path, allow_unlisted
    )
    checked = AnnotationSet(images, annotations, categories)
    return checked, count_findings(checked, zero_size_boxes=zero_size, unlisted_annotations=unlisted)


def read_categories(raw: Any, path: Path) -> tuple[Category, ...]:
    """Return the categories of parsed JSON, and check no more than is needed for that; `path` names it in errors."""
    _require_sections(raw, path)
    return _categories(raw["categories"], path)


def _require_sections(raw: Any, path: Path) -> None:
    guess = _other_format(raw)
    if guess:
        raise DataError(
            f"this looks like {guess}, not like COCO detection annotations",
            where=str(path),
            hint='a COCO file is an object with "images", "annotations" and "categories"',
        )
    if not isinstance(raw, dict):
        raise DataError(
            f"a COCO file is a JSON object, this is {kind(raw)}",
            where=str(path),
            hint='it needs "images", "annotations" and "categories"',
        )
    for section in SECTIONS:
        if section not in raw:
            raise DataError(f'the key "{section}" is missing', where=str(path))
        if not isinstance(raw[section], list):
            raise DataError(f"must be a list, is {kind(raw[section])}", where=f"{path}: {section}")
        for index, item in enumerate(raw[section]):
            if type(item) is not dict:
                raise DataError(f"must be an object, is {kind(item)}", where=f"{path}: {section}[{index}]")


def _other_format(raw: Any) -> str | None:
    """Name the well-known format that is not COCO detection, or return None."""
    if isinstance(raw, list):
        first = raw[0] if raw else None
        if isinstance(first, dict) and {"image_id", "score"} <= first.keys():
            return "a results file"
        if isinstance(first, dict) and {"image", "annotations"} <= first.keys():
            return "a CreateML file"
        return None
    if not isinstance(raw, dict):
        return None
    if "shapes" in raw and "imagePath" in raw:
        return "a LabelMe file"
    annotations = raw.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if isinstance(first, dict) and "bbox" not in first:
        if "segments_info" in first:
            return "a panoptic file"
        if "caption" in first:
            return "a captions file"
    return None


def _categories(raw: Sequence[dict[str, Any]], path: Path) -> tuple[Category, ...]:
    categories: list[Category] = []
    index_of_id: dict[int, int] = {}
    index_of_name: dict[str, int] = {}
    for index, item in enumerate(raw):
        place = f"{path}: categories[{index}]"
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


def _read_images(raw: Sequence[dict[str, Any]], path: Path, image_root: Path) -> tuple[ImageRecord, ...]:
    images: list[ImageRecord] = []
    index_of_id: dict[int, int] = {}
    for index, item in enumerate(raw):
        place = f"{path}: images[{index}]"
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
            join_within(image_root, file_name)
        except DataError as error:
            raise DataError(error.message, where=f"{place}.file_name", hint=error.hint) from error
        index_of_id[ident] = index
        images.append(ImageRecord(ident, file_name, width, height))
    return tuple(images)


def _read_annotations(
    raw: Sequence[dict[str, Any]],
    images: Sequence[ImageRecord],
    category_ids: set[int],
    path: Path,
    allow_unlisted: bool,
) -> tuple[tuple[Annotation, ...], int, int]:
    """Return the annotations, and how many were dropped for a zero size and for an unlisted image."""
    image_ids = {image.id for image in images}
    index_of_id: dict[int, int] = {}
    kept: list[Annotation] = []
    indices: list[int] = []
    unlisted: list[int] = []
    unknown: list[int] = []
    for index, item in enumerate(raw):
        ident, image_id, category_id = item.get("id"), item.get("image_id"), item.get("category_id")
        if type(ident) is not int or type(image_id) is not int or type(category_id) is not int:
            for key in ("id", "image_id", "category_id"):
                whole(item.get(key), f"{path}: annotations[{index}].{key}")
        elif index_of_id.setdefault(ident, index) != index:
            raise DataError(
                f"the annotation id {ident} is used already by annotations[{index_of_id[ident]}]",
                where=f"{path}: annotations[{index}]",
                hint="give every annotation its own id",
            )
        elif image_id not in image_ids:
            unlisted.append(index)
        elif category_id not in category_ids:
            unknown.append(index)
        else:
            kept.append(_read_annotation(item, f"{path}: annotations[{index}]"))
            indices.append(index)
    if max(index_of_id, default=0) > MAX_ID or min(index_of_id, default=0) < -MAX_ID:
        raise DataError("annotation ids must fit into 64 bits", where=f"{path}: annotations")
    _check_references(raw, unlisted, unknown, path, allow_unlisted)
    annotations = _check_boxes(kept, indices, images, path)
    return annotations, len(kept) - len(annotations), len(unlisted)


def _read_annotation(item: dict[str, Any], place: str) -> Annotation:
    """Check one annotation's own values; its place in the image comes later, for all boxes at once."""
    box = item.get("bbox")
    if type(box) is not list or len(box) != 4:
        raise DataError(
            "must be four numbers [left, top, width, height] in pixels, is "
            + (f"a list of {len(box)}" if type(box) is list else kind(box)),
            where=f"{place}.bbox",
        )
    for value in box:
        if type(value) not in (int, float) or not -_LARGEST < value < _LARGEST:
            raise DataError(f"must be four finite numbers, has {shown(value)}", where=f"{place}.bbox")
    left, top, width, height = box
    area = item.get("area", width * height)
    if type(area) not in (int, float) or not -(_LARGEST**2) < area < _LARGEST**2:
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
    raw: Sequence[dict[str, Any]], unlisted: list[int], unknown: list[int], path: Path, allow_unlisted: bool
) -> None:
    if unknown:
        ids = sorted({raw[index]["category_id"] for index in unknown})
        raise refuse(
            path,
            [f"annotations[{index}].category_id" for index in unknown],
            f"the category id {ids[0]} is not among the categories"
            if len(ids) == 1
            else f"category ids such as {ids[0]} and {ids[1]} are not among the categories",
        )
    # The reference's subset files list some images and keep all annotations. A file none of whose annotations
    # fits its images is something else.
    is_subset = 2 * len(unlisted) > len(raw) and len(unlisted) < len(raw)
    if unlisted and not allow_unlisted and not is_subset:
        raise refuse(
            path,
            [f"annotations[{index}].image_id" for index in unlisted],
            f"the image id {raw[unlisted[0]]['image_id']} is not among the images",
            "remove these annotations, or list their images",
        )


def _check_boxes(
    annotations: Sequence[Annotation], indices: Sequence[int], images: Sequence[ImageRecord], path: Path
) -> tuple[Annotation, ...]:
    """Refuse boxes that cannot be right, and return the others without those of zero size."""
    if not annotations:
        return ()
    size_of_image = {image.id: (image.width, image.height) for image in images}
    boxes_xywh_px = np.array([annotation.box_xywh_px for annotation in annotations])
    sizes = np.array([size_of_image[annotation.image_id] for annotation in annotations], dtype=np.float64)
    starts, extents = boxes_xywh_px[:, :2], boxes_xywh_px[:, 2:]

    def places(wrong: NDArray[np.bool_]) -> list[str]:
        return [f"annotations[{indices[position]}].bbox" for position in np.flatnonzero(wrong).tolist()]

    negative: NDArray[np.bool_] = np.any(extents < 0, axis=1)
    if negative.any():
        first = annotations[int(np.argmax(negative))]
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
        first = annotations[int(np.argmax(outside))]
        width, height = size_of_image[first.image_id]
        raise refuse(
            path,
            places(outside),
            f"the box {_box_text(first.box_xywh_px)} lies wholly outside its image of {width} x {height} pixels",
        )
    return tuple(annotations[position] for position in np.flatnonzero(has_size).tolist())


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
        "images": [
            {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height}
            for image in annotations.images
        ],
        "annotations": [
            {
                "id": annotation.id,
                "image_id": annotation.image_id,
                "category_id": annotation.category_id,
                "bbox": annotation.box_xywh_px,
                "area": annotation.area,
                "iscrowd": int(annotation.is_crowd),
            }
            for annotation in annotations.annotations
        ],
        "categories": [{"id": category.id, "name": category.name} for category in annotations.categories],
    }
    write_atomic(path, orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE))


def _box_text(box_xywh_px: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box_xywh_px) + "]"

"""COCO annotation files: read with every check, written the same way every time."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from core.annotations.box_formats import BoxFormat, as_xywh_px, guess_box_format
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
from core.annotations.content import ReadOptions
from core.annotations.faults import FaultLog
from core.annotations.findings import Findings, count_findings, refuse
from core.annotations.images import require_moderate_size
from core.annotations.json_values import MAX_ID, kind, shown, text, whole
from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.errors import DataError
from core.files import NamesWithin, write_atomic

_LOOKS: dict[BoxFormat, str] = {
    "xyxy": "like edges x1, y1, x2, y2",
    "xywh-norm": "normalised to 0 ... 1",
    "xyxy-norm": "like edges x1, y1, x2, y2, normalised to 0 ... 1",
}


def read_coco(path: Path, image_root: Path | None = None) -> AnnotationSet:
    """Read and check a COCO detection file; see `inspect_coco`, which also returns what it noticed."""
    return inspect_coco(path, image_root)[0]


def inspect_coco(
    path: Path,
    image_root: Path | None = None,
    options: ReadOptions | None = None,
    log: FaultLog | None = None,
) -> tuple[AnnotationSet, Findings]:
    """Read and check a COCO detection file. Images are not opened.

    A file most of whose annotations are of images that it does not list is a subset in the style of the DE-DETR
    reference (fewer images, all annotations) and is accepted without `allow_unlisted`.

    Args:
        path: the JSON file.
        image_root: the folder that its file names are below; by default the file's own folder.
        options: the format of its boxes, and whether annotations of images that it does not list are left out.
        log: is told of images and annotations that cannot be used; by default the first one is raised.

    Returns:
        The annotations as they stand (boxes are not clipped) without boxes of zero width or height, and what
        was noticed.

    Raises:
        DataError: the file is missing, no JSON, no COCO detection file, or contradicts itself.
    """
    return check_coco(read_document(path), image_root, options, log)


def check_coco(
    document: CocoDocument,
    image_root: Path | None = None,
    options: ReadOptions | None = None,
    log: FaultLog | None = None,
) -> tuple[AnnotationSet, Findings]:
    """Check a file that was taken apart as `inspect_coco` does."""
    options = options or ReadOptions()
    log = log or FaultLog()
    categories = read_categories(document)
    images, dropped_ids = _read_images(document, document.path.parent if image_root is None else image_root, log)
    if document.annotations and not categories:
        raise DataError("there are annotations, but no categories", where=f"{document.path}: categories", code="F02")
    read = _read_annotations(document, images, {category.id for category in categories}, dropped_ids, log)
    unlisted = _check_unlisted(document, read.unlisted, options.allow_unlisted, log)
    annotations = as_xywh_px(AnnotationSet(images, read.annotations, categories), options.boxes)
    checked, num_zero_size = _check_boxes(annotations, read, document.path, log)
    return checked, count_findings(checked, zero_size_boxes=num_zero_size, unlisted_annotations=unlisted)


def read_categories(document: CocoDocument) -> tuple[Category, ...]:
    """Return the categories of a file, and check no more than them."""
    categories: list[Category] = []
    index_of_id: dict[int, int] = {}
    index_of_name: dict[str, int] = {}
    for index, entry in enumerate(document.categories):
        item, place = fields_of(entry), f"{document.path}: categories[{index}]"
        ident = whole(item.get("id"), f"{place}.id", code="F16")
        name = text(item.get("name"), f"{place}.name", code="F17")
        if ident in index_of_id:
            raise DataError(
                f"the category id {ident} is used already by categories[{index_of_id[ident]}]", where=place, code="F16"
            )
        if name in index_of_name:
            raise DataError(
                f"the category name {name!r} is used already by categories[{index_of_name[name]}]",
                where=place,
                hint="give every class its own name, or merge the two classes",
                code="F17",
            )
        index_of_id[ident] = index_of_name[name] = index
        categories.append(Category(ident, name))
    return tuple(categories)


def _read_images(document: CocoDocument, image_root: Path, log: FaultLog) -> tuple[tuple[ImageRecord, ...], set[int]]:
    """Return the images, and the ids of those that the log let go."""
    images: list[ImageRecord] = []
    names = NamesWithin(image_root)
    index_of_id: dict[int, int] = {}
    index_of_name: dict[str, int] = {}
    dropped_ids: set[int] = set()
    for index, entry in enumerate(document.images):
        item, place = fields_of(entry), f"{document.path}: images[{index}]"
        image = log.attempt(_read_image, item, place, names)
        if image is None:
            if type(item.get("id")) is int:
                dropped_ids.add(item["id"])
        elif image.id not in index_of_id and image.file_name in index_of_name:
            # Each entry would teach that the objects of the other are background.
            log.invalid(_listed_twice(image, place, index_of_name[image.file_name]))
            dropped_ids.add(image.id)
        elif image.id in index_of_id:
            # Whose annotations they are nobody can tell: not to be mended by leaving one out.
            earlier = index_of_id[image.id]
            raise DataError(
                f"the image id {image.id} ({image.file_name!r}) is used already by images[{earlier}] "
                f"({fields_of(document.images[earlier]).get('file_name')!r})",
                where=place,
                hint="give every image its own id",
                code="F04",
            )
        else:
            index_of_id[image.id] = index_of_name[image.file_name] = index
            images.append(image)
    ambiguous = dropped_ids & index_of_id.keys()
    if ambiguous:
        raise DataError(
            f"the image id {min(ambiguous)} is used twice, and one of the two cannot be used",
            where=f"{document.path}: images[{index_of_id[min(ambiguous)]}]",
            hint="give every image its own id",
            code="F04",
        )
    return tuple(images), dropped_ids


def _listed_twice(image: ImageRecord, place: str, earlier: int) -> DataError:
    return DataError(
        f"the image {image.file_name!r} is listed already as images[{earlier}], under another id",
        where=place,
        hint="give the annotations of both the id of one, and remove the other",
        code="F04",
    )


def _read_image(item: Fields, place: str, names: NamesWithin) -> ImageRecord:
    ident = whole(item.get("id"), f"{place}.id")
    file_name = text(item.get("file_name"), f"{place}.file_name")
    width, height = (whole(item.get(side), f"{place}.{side}", least=1) for side in ("width", "height"))
    require_moderate_size(width, height, place)
    try:
        names.require(file_name)
    except DataError as error:
        raise DataError(error.message, where=f"{place}.file_name", hint=error.hint, code=error.code) from error
    return ImageRecord(ident, file_name, width, height)


@dataclass(frozen=True)
class _Read:
    """Annotations of listed images and classes with their positions in the file; positions of the others."""

    annotations: tuple[Annotation, ...]
    positions: Sequence[int]
    unlisted: Sequence[int]


def _read_annotations(
    document: CocoDocument,
    images: Sequence[ImageRecord],
    category_ids: set[int],
    dropped_ids: set[int],
    log: FaultLog,
) -> _Read:
    path = document.path
    own_id = {image.id: image.id for image in images}  # one number for all annotations of an image
    index_of_id: dict[int, int] = {}
    kept: list[Annotation] = []
    positions, unlisted, unknown = array("q"), array("q"), array("q")
    for index, entry in enumerate(document.annotations):
        item = (
            entry
            if isinstance(entry, CocoAnnotation)
            else log.attempt(_read_references, entry, f"{path}: annotations[{index}]")
        )
        if item is None:
            continue
        if index_of_id.setdefault(item.id, index) != index:
            log.invalid(_used_twice(path, index, item.id, index_of_id[item.id]))
        elif item.image_id not in own_id:
            if item.image_id not in dropped_ids:
                unlisted.append(index)
        elif item.category_id not in category_ids:
            unknown.append(index)
        elif isinstance(entry, CocoAnnotation):
            area = entry.bbox[2] * entry.bbox[3] if entry.area is UNSET else entry.area
            positions.append(index)
            kept.append(
                Annotation(item.id, own_id[item.image_id], item.category_id, entry.bbox, area, entry.iscrowd == 1)
            )
        else:
            annotation = log.attempt(_read_annotation, entry, f"{path}: annotations[{index}]")
            if annotation is not None:
                positions.append(index)
                kept.append(annotation)
    if max(index_of_id, default=0) > MAX_ID or min(index_of_id, default=0) < -MAX_ID:
        raise DataError("annotation ids must fit into 64 bits", where=f"{path}: annotations", code="F02")
    if unknown:
        log.invalid(_unknown_categories(document, unknown))
    return _Read(tuple(kept), positions, unlisted)


def _used_twice(path: Path, index: int, ident: int, earlier: int) -> DataError:
    return DataError(
        f"the annotation id {ident} is used already by annotations[{earlier}]",
        where=f"{path}: annotations[{index}]",
        hint="give every annotation its own id",
        code="F05",
    )


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
            code="F09",
        )
    for value in box:
        if type(value) not in (int, float) or not -LARGEST < value < LARGEST:
            raise DataError(f"must be four finite numbers, has {shown(value)}", where=f"{place}.bbox", code="F09")
    left, top, width, height = box
    area = item.get("area", width * height)
    if type(area) not in (int, float) or not -(LARGEST**2) < area < LARGEST**2:
        raise DataError(f"must be a finite number, is {shown(area)}", where=f"{place}.area", code="F09")
    is_crowd = item.get("iscrowd", 0)
    if is_crowd not in (0, 1):
        raise DataError(f"must be 0 or 1, is {shown(is_crowd)}", where=f"{place}.iscrowd", code="F15")
    return Annotation(
        item["id"],
        item["image_id"],
        item["category_id"],
        (float(left), float(top), float(width), float(height)),
        float(area),
        bool(is_crowd),
    )


def _unknown_categories(document: CocoDocument, unknown: Sequence[int]) -> DataError:
    ids = sorted({document.references(position)[1] for position in unknown})
    return refuse(
        document.path,
        [f"annotations[{index}].category_id" for index in unknown],
        f"the category id {ids[0]} is not among the categories"
        if len(ids) == 1
        else f"category ids such as {ids[0]} and {ids[1]} are not among the categories",
        code="F07",
    )


def _check_unlisted(document: CocoDocument, unlisted: Sequence[int], allow_unlisted: bool, log: FaultLog) -> int:
    """Refuse annotations of images that are not listed, or return how many are left out."""
    # The reference's subset files list some images and keep all annotations. A file none of whose annotations
    # fits its images is something else.
    num_annotations = len(document.annotations)
    is_subset = 2 * len(unlisted) > num_annotations and len(unlisted) < num_annotations
    if not unlisted or allow_unlisted or is_subset:
        return len(unlisted)
    log.invalid(
        refuse(
            document.path,
            [f"annotations[{index}].image_id" for index in unlisted],
            f"the image id {document.references(unlisted[0])[0]} is not among the images",
            "remove these annotations, or list their images",
            code="F06",
        )
    )
    return 0


def _check_boxes(annotations: AnnotationSet, read: _Read, path: Path, log: FaultLog) -> tuple[AnnotationSet, int]:
    """Refuse boxes that cannot be right; return the others without those of zero size, and how many these were."""
    if not annotations.annotations:
        return annotations, 0
    boxes_xywh_px = annotations.boxes_xywh_px
    sizes = annotations.image_sizes_wh_px[annotations.image_rows]
    starts, extents = boxes_xywh_px[:, :2], boxes_xywh_px[:, 2:]

    def refuse_boxes(wrong: NDArray[np.bool_], reason: Callable[[int], str], code: str) -> None:
        places = [f"annotations[{read.positions[row]}].bbox" for row in np.flatnonzero(wrong).tolist()]
        if places:
            log.invalid(refuse(path, places, reason(int(np.argmax(wrong))), code=code))

    negative: NDArray[np.bool_] = np.any(extents < 0, axis=1)
    refuse_boxes(negative, lambda row: f"negative width or height: {_box_text(boxes_xywh_px[row])}", "F08")
    guess = guess_box_format(boxes_xywh_px[~negative], sizes[~negative])
    if guess:
        raise DataError(
            f"the boxes look {_LOOKS[guess]}, not like left, top, width, height in pixels",
            where=f"{path}: annotations[{read.positions[0]}].bbox",
            hint=f"`dedetr prepare-data SOURCE --boxes {guess}` reads them so",
            code="F11",
        )
    has_size: NDArray[np.bool_] = np.all(extents > 0, axis=1)
    outside = has_size & np.any((starts >= sizes) | (starts + extents <= 0), axis=1)
    refuse_boxes(
        outside,
        lambda row: (
            f"the box {_box_text(boxes_xywh_px[row])} lies wholly outside its image of "
            f"{sizes[row, 0]:g} x {sizes[row, 1]:g} pixels"
        ),
        "F10",
    )
    usable = has_size & ~outside
    num_zero_size = int(np.sum(~has_size & ~negative))
    if usable.all():
        return annotations, 0
    kept = tuple(compress(annotations.annotations, usable.tolist()))
    return replace(annotations, annotations=kept), num_zero_size


def write_coco(path: Path, annotations: AnnotationSet) -> None:
    """Write a COCO file; see `encode_coco`.

    Raises:
        MachineError: the folder cannot be written.
    """
    write_atomic(path, encode_coco(annotations))


def encode_coco(annotations: AnnotationSet) -> bytes:
    """Return a COCO file; equal annotations give equal bytes."""
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
    return msgspec.json.encode(content) + b"\n"


def _box_text(box_xywh_px: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box_xywh_px) + "]"

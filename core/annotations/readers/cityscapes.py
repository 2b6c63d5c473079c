"""Cityscapes as it is downloaded: boxes of the eight classes that have instances, from instance images or polygons.

    leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png       or leftImg8bit_trainvaltest.zip
    gtFine/{train,val}/CITY/NAME_gtFine_instanceIds.png     or gtFine_trainvaltest.zip
    gtFine/{train,val}/CITY/NAME_gtFine_polygons.json

An instance image holds, for every pixel, the number of what is seen there: label * 1000 + k for the k-th object of a
class with instances, the label alone for all else and for groups of objects that nobody could tell apart (cargroup). A
box encloses the pixels of an object, so it is the box of its visible part, and its edges are those of the pixels: an
object of one pixel is 1 wide. The usual conversion to COCO does the same.

Polygons are drawn to such an image first, the later over the earlier, as Cityscapes' own tool does: farther objects
come first, and their polygons go on behind what hides them. So both sources give the same boxes. Where a picture has
both, the instance image is taken: it was drawn once for all, while polygons are drawn by the Pillow at hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from core.annotations.archives import unpack_beside
from core.annotations.coco_document import LARGEST
from core.annotations.content import ReadOptions, Source, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.findings import count_findings, refuse
from core.annotations.images import read_numbers, require_moderate_size, upright_size
from core.annotations.json_values import kind, load_json, shown, text, whole
from core.annotations.layouts import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_IMAGES,
    CITYSCAPES_LABELS,
    cityscapes_archive,
    cityscapes_folder,
    has_cityscapes,
)
from core.annotations.records import Annotation, AnnotationSet, BoxXYWH, Category, ImageRecord
from core.errors import DataError, UsageError
from core.files import NamesWithin

LABELS = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road"),
    *("sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole"),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck"),
    *("bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
"""Cityscapes' labels; the position of a label is its number."""
FIRST_WITH_INSTANCES = LABELS.index("person")
_NOT_DRAWN = "license plate"
_GROUP = "group"
_INSTANCES = 1000
_LABEL_NUMBERS = {name: number for number, name in enumerate(LABELS)}
_CATEGORIES = tuple(Category(ident, name) for ident, name in enumerate(CITYSCAPES_CLASSES, start=1))
_CATEGORY_IDS = {LABELS.index(category.name): category.id for category in _CATEGORIES}

_SPLITS = ("train", "val")
_PICTURE, _INSTANCE_IMAGE, _POLYGONS = "_leftImg8bit.png", "_gtFine_instanceIds.png", "_gtFine_polygons.json"
_ROWS = 256


@dataclass(frozen=True)
class _Object:
    category_id: int
    box_xywh_px: BoxXYWH
    area: int
    is_crowd: bool


@dataclass(frozen=True)
class _Labels:
    """What the ground truth of one picture says; `num_hidden` objects have no visible pixel."""

    width: int
    height: int
    objects: tuple[_Object, ...]
    is_from_polygons: bool
    num_hidden: int = 0


def is_cityscapes(path: Path) -> bool:
    """Tell whether a folder has Cityscapes' own folders or archives; if only one of them, reading it says so."""
    return has_cityscapes(path, CITYSCAPES_IMAGES) or has_cityscapes(path, CITYSCAPES_LABELS)


def read_cityscapes(path: Path, options: ReadOptions | None = None, log: FaultLog | None = None) -> Source:
    """Read Cityscapes as it is downloaded; archives are unpacked beside themselves first.

    Classes have the ids of the DE-DETR reference. Groups of objects become crowds, one for each part that hangs
    together. The test split, whose labels are not public, is left out.

    Args:
        path: the folder of `leftImg8bit` and `gtFine`, or of their archives.
        options: see `ReadOptions.unpack`.
        log: is told of pictures, labels and objects that cannot be used; by default the first one is raised.

    Raises:
        DataError: a folder, a picture or its labels are missing or damaged.
        UsageError: an archive must not be unpacked, or a folder is in its place.
        MachineError: an archive cannot be unpacked to where it lies.
    """
    options, log = options or ReadOptions(), log or FaultLog()
    notes: list[str] = []
    images, labels = (_folder(path, name, options, notes) for name in (CITYSCAPES_IMAGES, CITYSCAPES_LABELS))
    splits: dict[str, SplitContent] = {}
    counts: Counter[str] = Counter()
    num_images = 0
    for split in _SPLITS:
        read = _read_split(images / split, labels / split, log)
        if read:
            splits[split] = _content(read, images / split, num_images + 1)
            num_images += len(read)
            counts.update("polygons" if one.is_from_polygons else "instance images" for one in read.values())
            counts["hidden"] += sum(one.num_hidden for one in read.values())
    if not splits:
        raise DataError(
            f"no pictures with labels: looked for {{train,val}}/CITY/NAME{_PICTURE}", where=str(images), code="F19"
        )
    return Source(path, "cityscapes", splits, (*notes, *_notes(counts, images, labels)))


def _notes(counts: Counter[str], images: Path, labels: Path) -> Iterator[str]:
    sources = [f"{source} ({counts[source]})" for source in ("instance images", "polygons") if counts[source]]
    yield f"boxes are of the visible part of each object, made from {' and '.join(sources)}"
    if counts["instance images"]:
        yield "where there are both, instance images are taken and polygons are not read"
    yield "class ids are those of the DE-DETR reference; groups of objects are crowds"
    if counts["hidden"]:
        yield f"objects without a visible pixel, left out: {counts['hidden']}"
    if (images / "test").is_dir() or (labels / "test").is_dir():
        yield "the test split was left out: its labels are not public, and what lies there are stand-ins"


def _folder(path: Path, name: str, options: ReadOptions, notes: list[str]) -> Path:
    """Return Cityscapes' own folder `name`, unpacked if only its archive is there."""
    folder = cityscapes_folder(path, name)
    archive = cityscapes_archive(path, name)
    if folder is None and archive.is_file():
        if not options.unpack:
            raise UsageError(
                f"{archive.name} has to be unpacked first", where=str(path), hint=f"unpack it, so that {name} is there"
            )
        unpacked = unpack_beside(archive, wanted=_is_read)
        note = f"train and val of {archive.name} were unpacked to {unpacked}"
        notes.append(note + ("; the pictures are used from there" if name == CITYSCAPES_IMAGES else ""))
        folder = cityscapes_folder(path, name)
    if folder is None:
        raise DataError(
            f"this is Cityscapes, but there is no {name}, nor {archive.name} with its train or val split",
            where=str(path),
            hint=f"put {name} into this folder" + (" (gtCoarse is not read)" if name == CITYSCAPES_LABELS else ""),
            code="F19" if name == CITYSCAPES_IMAGES else "F02",
        )
    return folder


def _is_read(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 4 and parts[1] in _SPLITS and name.endswith((_PICTURE, _INSTANCE_IMAGE, _POLYGONS))


def _read_split(images: Path, labels: Path, log: FaultLog) -> dict[str, _Labels]:
    """Read the labels of all pictures of a split, by file name below `images`."""
    pictures = _files(images, _PICTURE)
    instance_images, polygons = _files(labels, _INSTANCE_IMAGE), _files(labels, _POLYGONS)
    labelled = instance_images.keys() | polygons.keys()
    missing = sorted(labelled - pictures.keys())
    if missing:
        places = [f"{stem}{_PICTURE}" for stem in missing]
        log.invalid(refuse(images, places, "the picture is missing, its labels are there", code="F19"))
    unlabelled = sorted(pictures.keys() - labelled)
    if unlabelled:
        places = [f"{stem}{_INSTANCE_IMAGE}" for stem in unlabelled]
        reason = "the picture has no labels: neither an instance image nor polygons"
        log.invalid(refuse(labels, places, reason, "remove it, or add its labels", code="F02"))
    read: dict[str, _Labels] = {}
    names = NamesWithin(images)
    for stem in sorted(pictures.keys() & labelled):
        if log.attempt(_name_within, names, stem, images) is None:
            continue
        found = (
            log.attempt(_read_instance_image, instance_images[stem], log)
            if stem in instance_images
            else log.attempt(_read_polygons, polygons[stem], pictures[stem], log)
        )
        if found is not None:
            read[f"{stem}{_PICTURE}"] = found
    return read


def _name_within(names: NamesWithin, stem: str, images: Path) -> str:
    where = f"{images}: {stem!a}"
    try:
        names.require(f"{stem}{_PICTURE}")
    except DataError as error:
        raise DataError(error.message, where=where, hint=error.hint, code=error.code) from error
    return text(stem, where)  # bytes that are no UTF-8 cannot be written down


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files CITY/NAME`suffix` by CITY/NAME."""
    return {f"{path.parent.name}/{path.name.removesuffix(suffix)}": path for path in folder.glob(f"*/*{suffix}")}


def _content(labels: Mapping[str, _Labels], image_root: Path, first_id: int) -> SplitContent:
    images: list[ImageRecord] = []
    annotations: list[Annotation] = []
    for image_id, (file_name, one) in enumerate(labels.items(), start=first_id):
        images.append(ImageRecord(image_id, file_name, one.width, one.height))
        annotations += [
            Annotation(ident, image_id, found.category_id, found.box_xywh_px, float(found.area), found.is_crowd)
            for ident, found in enumerate(one.objects, start=len(annotations) + 1)
        ]
    annotation_set = AnnotationSet(tuple(images), tuple(annotations), _CATEGORIES)
    return SplitContent(annotation_set, image_root, count_findings(annotation_set))


def _read_instance_image(path: Path, log: FaultLog) -> _Labels:
    numbers = read_numbers(path)
    return _Labels(numbers.shape[1], numbers.shape[0], tuple(_objects(numbers, path, log)), is_from_polygons=False)


def _objects(numbers: NDArray[np.uint16], path: Path, log: FaultLog) -> Iterator[_Object]:
    """Yield the objects of an instance image, (H, W)."""
    from scipy import ndimage  # here, as it takes a while to import

    areas = np.zeros(1 << 16, np.int64)
    for top in range(0, len(numbers), _ROWS):  # bincount takes 8 bytes a pixel
        areas += np.bincount(numbers[top : top + _ROWS].ravel(), minlength=len(areas))
    places = ndimage.find_objects(numbers)
    for number in np.flatnonzero(areas).tolist():
        label, is_group = (number, True) if number < _INSTANCES else (number // _INSTANCES, False)
        if label >= len(LABELS) or (label < FIRST_WITH_INSTANCES and not is_group):
            reason = f"{int(areas[number])} pixels have the number {number}, which stands for no label of Cityscapes"
            log.invalid(DataError(reason, where=str(path), hint=_IS_GT_FINE, code="F07"))
        elif label in _CATEGORY_IDS:
            place = places[number - 1]
            if is_group:
                parts, _ = ndimage.label(numbers[place] == number, np.ones((3, 3)))
                sizes = np.bincount(parts.ravel())
                for part, inner in enumerate(ndimage.find_objects(parts), start=1):
                    box = _box(inner, place[1].start, place[0].start)
                    yield _Object(_CATEGORY_IDS[label], box, int(sizes[part]), is_crowd=True)
            else:
                yield _Object(_CATEGORY_IDS[label], _box(place), int(areas[number]), is_crowd=False)


_IS_GT_FINE = "labels as those of gtFine are read"


def _box(place: tuple[slice, ...], left: int = 0, top: int = 0) -> BoxXYWH:
    rows, columns = place
    width, height = columns.stop - columns.start, rows.stop - rows.start
    return float(left + columns.start), float(top + rows.start), float(width), float(height)


@dataclass(frozen=True)
class _Polygon:
    label: int
    is_group: bool
    points: list[tuple[float, float]]


def _read_polygons(path: Path, picture: Path, log: FaultLog) -> _Labels:
    raw = load_json(path)
    if not isinstance(raw, dict):
        raise DataError(f"must be an object, is {kind(raw)}", where=str(path), code="F02")
    width, height = (whole(raw.get(side), f"{path}: {side}", least=1) for side in ("imgWidth", "imgHeight"))
    require_moderate_size(width, height, str(path))
    if upright_size(picture) != (width, height):  # before memory is taken for what a few letters claim
        found = "{} x {}".format(*upright_size(picture))
        reason = f"the picture has {found} pixels, its polygons are for {width} x {height}"
        raise DataError(reason, where=str(path), hint="use the picture that was labelled", code="F25")
    if not isinstance(raw.get("objects"), list):
        reason = f"must be a list, is {kind(raw.get('objects'))}"
        raise DataError(reason, where=f"{path}: objects", code="F02")
    polygons: list[_Polygon] = []
    for index, entry in enumerate(raw["objects"]):
        polygon = log.attempt(_read_polygon, entry, f"{path}: objects[{index}]", (width, height))
        if polygon is not None and polygon.points:
            polygons.append(polygon)
    _require_pixels(polygons, path)
    numbers, num_drawn = _draw(polygons, width, height, path)
    objects = tuple(_objects(numbers, path, log))
    num_seen = sum(not found.is_crowd for found in objects)
    return _Labels(width, height, objects, is_from_polygons=True, num_hidden=num_drawn - num_seen)


def _read_polygon(entry: Any, place: str, size: tuple[int, int]) -> _Polygon:
    """Check one object; one that is deleted or never drawn has no points."""
    if not isinstance(entry, dict):
        raise DataError(f"must be an object, is {kind(entry)}", where=place, code="F02")
    name = text(entry.get("label"), f"{place}.label", code="F17")
    if entry.get("deleted") == 1 or name == _NOT_DRAWN:
        return _Polygon(0, False, [])
    is_group = name not in _LABEL_NUMBERS and name.endswith(_GROUP)
    label = _LABEL_NUMBERS.get(name.removesuffix(_GROUP) if is_group else name)
    if label is None:
        raise DataError(f"{name!r} is no label of Cityscapes", where=f"{place}.label", hint=_IS_GT_FINE, code="F07")
    points = entry.get("polygon")
    if not isinstance(points, list) or len(points) < 2:  # Cityscapes' tool draws two points as a line
        reason = "must be a list of points [x, y]" if not isinstance(points, list) else "must have at least two points"
        raise DataError(reason, where=f"{place}.polygon", code="F02")
    for index, point in enumerate(points):
        if (
            not isinstance(point, list)
            or len(point) != 2
            or any(type(value) not in (int, float) or not -LARGEST < value < LARGEST for value in point)
        ):
            reason = f"must be two finite numbers [x, y], is {shown(point)}"
            raise DataError(reason, where=f"{place}.polygon[{index}]", code="F09")
    if label in _CATEGORY_IDS:
        for axis, extent in enumerate(size):
            if max(point[axis] for point in points) < 0 or min(point[axis] for point in points) >= extent:
                reason = f"the object lies wholly outside its image of {size[0]} x {size[1]} pixels"
                raise DataError(reason, where=f"{place}.polygon", code="F10")
    return _Polygon(label, is_group, [(x, y) for x, y in points])


def _require_pixels(polygons: list[_Polygon], path: Path) -> None:
    values = [value for polygon in polygons for point in polygon.points for value in point]
    if values and min(values) >= 0 and max(values) <= 1 and any(value % 1 for value in values):
        raise DataError(
            "the polygons look normalised to 0 ... 1, not like pixels",
            where=str(path),
            hint="write each point as [x, y] in pixels",
            code="F11",
        )


def _draw(polygons: list[_Polygon], width: int, height: int, path: Path) -> tuple[NDArray[np.uint16], int]:
    """Draw an instance image, (H, W), as Cityscapes' own tool does; also say how many objects of our classes it got."""
    image = Image.new("I", (width, height))
    drawer = ImageDraw.Draw(image)
    num_of_label: Counter[int] = Counter()
    for polygon in polygons:
        number = polygon.label
        if number >= FIRST_WITH_INSTANCES and not polygon.is_group:
            number = number * _INSTANCES + num_of_label[number]
            num_of_label[polygon.label] += 1
            if num_of_label[polygon.label] > _INSTANCES:
                reason = f"more than {_INSTANCES} objects of the class {LABELS[polygon.label]!r}"
                raise DataError(reason, where=str(path), hint="Cityscapes' numbers have no room for them", code="F02")
        drawer.polygon(polygon.points, fill=number)
    num_drawn = sum(num_of_label[label] for label in _CATEGORY_IDS)
    return np.asarray(image).astype(np.uint16), num_drawn

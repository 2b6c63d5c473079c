"""YOLO data sets: images, and beside each a text file with a line for every object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.annotations.content import ReadOptions, Source, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.findings import count_findings
from core.annotations.json_values import text
from core.annotations.readers.yolo_labels import LabelReader
from core.annotations.readers.yolo_layout import (
    SplitImages,
    find_data_file,
    find_descriptions,
    find_layout,
    find_lists,
    find_split_folders,
)
from core.annotations.readers.yolo_paths import first_images, is_image, list_folder
from core.annotations.readers.yolo_pixels import size_and_turn, to_pixels, to_stored
from core.annotations.records import Annotation, AnnotationSet, BoxXYWH, Category, ImageRecord
from core.errors import DataError
from core.files import NamesWithin

_NUM_PEEKS = 50
_NO_LABELS = {"classes.txt", "train.txt", "val.txt", "valid.txt", "validation.txt", "test.txt"}


@dataclass(frozen=True)
class _Picture:
    """An image with its label file, or None without one; boxes with the id of their class."""

    file_name: str
    path: Path
    width: int
    height: int
    label_file: Path | None
    boxes: tuple[tuple[int, BoxXYWH], ...]
    num_zero_size: int


def is_yolo(path: Path) -> bool:
    """Tell whether a file or folder looks like YOLO: data.yaml, obj.data, lists of images, or labels of images."""
    try:
        if find_descriptions(path) or find_data_file(path) is not None:
            return True
        return path.is_dir() and (bool(find_lists(path)) or _has_labels(path))
    except OSError:
        return False


def read_yolo(path: Path, options: ReadOptions | None = None, log: FaultLog | None = None) -> Source:
    """Read a YOLO data set: `data.yaml` of Ultralytics and its kin, lists of Darknet, or folders alone.

    The label file of an image is where its path has `labels` for the last `images`, else beside it; without one it is
    a negative. Class ids are those of the labels, from 0. Outlines become the boxes around them. Equal lines stay, as
    equal objects do in other formats, so that a data set has the same boxes in all of them; Ultralytics drops them.

    Args:
        path: a folder, a `data.yaml` or an `obj.data`.
        options: none apply.
        log: is told of images and lines that cannot be used; by default the first kind of fault is raised.

    Returns:
        Image ids differ between splits. Images that are rotated by EXIF have their boxes on the rotated image.

    Raises:
        DataError: something cannot be read, is not there, contradicts itself, or no image has a box.
    """
    log = log or FaultLog()
    try:
        return _read(path, log)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(error.filename or path), code="F01") from error


def _read(path: Path, log: FaultLog) -> Source:
    if not is_yolo(path):
        raise DataError(
            "no YOLO data set: no data.yaml, no list of images, and no label files", where=str(path), code="F03"
        )
    layout = find_layout(path, log)
    labels = LabelReader(layout.classes, layout.num_key_point_values)
    pictures = {split: _read_pictures(images, labels, log) for split, images in layout.splits.items()}
    labels.tell(log)
    class_ids = {class_id for read in pictures.values() for picture in read for class_id, _ in picture.boxes}
    if not class_ids:
        raise DataError(
            "no image has a label file with a box in it",
            where=str(path),
            hint="the labels of images/a.jpg are looked for in labels/a.txt and images/a.txt",
            code="F13",
        )
    classes = layout.classes or {class_id: str(class_id) for class_id in sorted(class_ids)}
    categories = tuple(Category(class_id, name) for class_id, name in classes.items())
    splits: dict[str, SplitContent] = {}
    first_id = 1
    for split, read in pictures.items():
        splits[split] = _content(read, categories, layout.splits[split].image_root, first_id)
        first_id += len(read)
    notes = [*layout.notes]
    if layout.classes is None:
        notes.append("nothing says what the classes are called: their numbers are their names")
    everything = [picture for read in pictures.values() for picture in read]
    notes += [*_notes_of_labels(labels, layout.num_key_point_values), *_notes_of_files(everything)]
    return Source(path, "yolo", splits, tuple(notes))


def _read_pictures(images: SplitImages, labels: LabelReader, log: FaultLog) -> list[_Picture]:
    names = NamesWithin(images.image_root)
    read = (log.attempt(_read_picture, images.image_root, name, names, labels) for name in images.file_names)
    return [picture for picture in read if picture is not None]


def _read_picture(image_root: Path, name: str, names: NamesWithin, labels: LabelReader) -> _Picture:
    text(name, f"{image_root}: {name!r}")  # a name that is no Unicode cannot be written to a file
    names.require(name)
    path = image_root / name
    width, height, orientation = size_and_turn(path)
    label_file = next((file for file in label_files(path) if file.is_file()), None)
    boxes: list[tuple[int, BoxXYWH]] = []
    num_zero_size = 0
    for label in labels.read(label_file) if label_file else ():
        box = to_pixels(to_stored(label.box_cxcywh_norm, orientation), (width, height))
        if 0 in label.box_cxcywh_norm[2:] or (box is not None and 0 in box[2:]):
            num_zero_size += 1
        elif box is None:
            labels.faults.add(DataError("the box lies wholly outside its image", where=label.place, code="F10"))
        else:
            boxes.append((label.class_id, box))
    return _Picture(name, path, width, height, label_file, tuple(boxes), num_zero_size)


def label_files(image: Path) -> list[Path]:
    """Return where the label file of an image may be: in `labels` for the last `images` of its path, and beside it."""
    beside = image.with_suffix(".txt")
    parts = beside.parts
    last = next((index for index in reversed(range(len(parts) - 1)) if parts[index] == "images"), None)
    return [beside] if last is None else [Path(*parts[:last], "labels", *parts[last + 1 :]), beside]


def _content(
    pictures: Sequence[_Picture], categories: tuple[Category, ...], image_root: Path, first_id: int
) -> SplitContent:
    images: list[ImageRecord] = []
    annotations: list[Annotation] = []
    for image_id, picture in enumerate(pictures, start=first_id):
        images.append(ImageRecord(image_id, picture.file_name, picture.width, picture.height))
        for class_id, box in picture.boxes:
            ident = len(annotations) + 1
            annotations.append(Annotation(ident, image_id, class_id, box, box[2] * box[3], is_crowd=False))
    annotation_set = AnnotationSet(tuple(images), tuple(annotations), categories)
    num_zero_size = sum(picture.num_zero_size for picture in pictures)
    return SplitContent(annotation_set, image_root, count_findings(annotation_set, zero_size_boxes=num_zero_size))


def _notes_of_labels(labels: LabelReader, num_key_point_values: int) -> Iterator[str]:
    if num_key_point_values:
        yield "the key points were left out"
    if labels.num_outlines:
        yield f"outlines, of which the boxes around them were taken: {labels.num_outlines}"
    if labels.num_repeated:
        yield f"lines that repeat another of their file, kept: {labels.num_repeated}"


def _notes_of_files(pictures: Sequence[_Picture]) -> Iterator[str]:
    num_without = sum(picture.label_file is None for picture in pictures)
    if num_without:
        yield f"images without a label file, used as negatives: {num_without}"
    used = {picture.label_file for picture in pictures}
    folders = {picture.label_file.parent: picture.path.parent for picture in pictures if picture.label_file}
    num_unlisted = num_orphans = 0
    for label_folder, image_folder in folders.items():
        stems = {path.stem for path in list_folder(image_folder) if is_image(path.name)}
        for file in list_folder(label_folder):
            if file not in used and _may_be_label(file):
                num_unlisted += file.stem in stems
                num_orphans += file.stem not in stems
    if num_unlisted:
        yield f"label files of images that are in no split, left out: {num_unlisted}"
    if num_orphans:
        yield f"label files without an image, left out: {num_orphans}"


def _may_be_label(file: Path) -> bool:
    return file.suffix == ".txt" and file.name not in _NO_LABELS and not file.name.lower().startswith("readme")


def _has_labels(folder: Path) -> bool:
    """Tell whether some of the first images have a label file that begins like one."""
    for root in find_split_folders(folder).values():
        for image in (root / name for name in first_images(root, _NUM_PEEKS)):
            *mirrored, beside = label_files(image)
            if any(file.is_file() for file in mirrored) or (beside.is_file() and _begins_like_labels(beside)):
                return True
    return False


def _begins_like_labels(file: Path) -> bool:
    with file.open("rb") as stream:
        words = stream.read(1 << 10).decode("utf-8-sig", "replace").partition("\n")[0].split()
    try:
        return len([float(word) for word in words]) >= 5
    except ValueError:
        return False

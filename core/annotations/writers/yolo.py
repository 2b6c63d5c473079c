"""YOLO data sets in Ultralytics' layout: `images/SPLIT`, `labels/SPLIT`, `data.yaml`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import yaml

from core.annotations.content import SplitContent
from core.annotations.images import SUFFIXES
from core.annotations.readers.yolo_paths import is_hidden
from core.annotations.readers.yolo_pixels import to_fractions, to_upright, turn_of_record
from core.annotations.records import Annotation, ImageRecord
from core.annotations.writers.images import copy_image
from core.files import join_within, machine_errors, unique_names, write_atomic

_NUM_DIGITS = 12
"""After the point; a box on 20,000 pixels then comes back within 1e-7 of a pixel, and never as 1e-05."""
_FLOAT_NOISE_PX = 1e-6
_NOTES = {
    "crowd": "crowds, for which YOLO has no word, left out",
    "mask": "areas of masks, for which YOLO has no word, left out",
    "clipped": "boxes that reach over an image's edge, clipped",
    "outside": "boxes of which nothing is inside their image, left out",
    "renamed": "images that got another name, as labels go by names without endings",
    "gif": "GIF images, which Ultralytics does not read",
}


def write_yolo(splits: Mapping[str, SplitContent], out: Path) -> list[str]:
    """Write a data set, with copies of its images, into an empty folder.

    Classes are numbered from 0 by rising id. Every image gets a label file, an empty one where it has no objects.
    data.yaml has no `path`: without it Ultralytics takes the file's own folder, and with "." the current one.

    Args:
        splits: content by split name; all have the same categories.
        out: the folder.

    Returns:
        Sentences for the user: what could not be written as it was.

    Raises:
        DataError: an image cannot be read.
        MachineError: the folder cannot be written.
    """
    categories = sorted(next(iter(splits.values())).annotations.categories, key=lambda category: category.id)
    class_of_id = {category.id: index for index, category in enumerate(categories)}
    counts: Counter[str] = Counter()
    for split, content in splits.items():
        _write_split(split, content, class_of_id, out, counts)
    description = {
        **{split: f"images/{split}" for split in splits},
        "nc": len(categories),
        "names": {index: category.name for index, category in enumerate(categories)},
    }
    # Unprintable letters, line ends among them, only survive as escapes.
    is_printable = all(category.name.isprintable() for category in categories)
    write_atomic(out / "data.yaml", yaml.safe_dump(description, sort_keys=False, allow_unicode=is_printable))
    notes = [f"{sentence}: {counts[kind]}" for kind, sentence in _NOTES.items() if counts[kind]]
    missing = [split for split in ("train", "val") if split not in splits]
    return notes + [f"Ultralytics asks for a {split} split, and there is none" for split in missing]


def _write_split(
    split: str, content: SplitContent, class_of_id: Mapping[int, int], out: Path, counts: Counter[str]
) -> None:
    images = content.annotations.images
    annotations = content.annotations.by_image()
    for image, name in zip(images, _target_names(image.file_name for image in images), strict=True):
        path = join_within(content.image_root, image.file_name)
        lines = _lines(image, path, annotations[image.id], class_of_id, counts)
        counts["renamed"] += name != image.file_name
        counts["gif"] += name.lower().endswith(".gif")
        copy_image(content, image.file_name, join_within(out / "images" / split, name))
        labels = (out / "labels" / split / name).with_suffix(".txt")
        with machine_errors(labels, "write"):
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_bytes("".join(f"{line}\n" for line in lines).encode())


def _lines(
    image: ImageRecord,
    path: Path,
    annotations: Iterable[Annotation],
    class_of_id: Mapping[int, int],
    counts: Counter[str],
) -> list[str]:
    """Return the lines of an image's label file, and count what they do not say."""
    orientation = turn_of_record(path, (image.width, image.height))
    lines: list[str] = []
    for annotation in annotations:
        box = to_fractions(annotation.box_xywh_px, (image.width, image.height))
        if annotation.is_crowd:
            counts["crowd"] += 1
        elif box is None:
            counts["outside"] += 1
        else:
            left, top, width, height = annotation.box_xywh_px
            counts["mask"] += abs(annotation.area - width * height) > 1e-3 * annotation.area
            beyond_px = max(-left, -top, left + width - image.width, top + height - image.height)
            counts["clipped"] += beyond_px > _FLOAT_NOISE_PX
            numbers = (f"{value:.{_NUM_DIGITS}f}".rstrip("0").rstrip(".") for value in to_upright(box, orientation))
            lines.append(f"{class_of_id[annotation.category_id]} {' '.join(numbers)}")
    return lines


def _target_names(file_names: Iterable[str]) -> list[str]:
    """Return the images' names in the new folder: kept, unless their labels or a reader would not find them.

    `a.jpg` and `a.png` share a label file. Readers put `labels` for the last folder `images` of a path, pass over
    hidden files, and tell images by their ending.
    """
    wanted: list[PurePosixPath] = []
    for file_name in file_names:
        parts = PurePosixPath(file_name).parts
        name = PurePosixPath(*(f"_{part}" if is_hidden(part) or part == "images" else part for part in parts))
        wanted.append(name if name.suffix.lower() in SUFFIXES else name.with_name(f"{name.name}.jpg"))
    of_folder: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(wanted):
        of_folder[str(name.parent).casefold()].append(index)
    for indices in of_folder.values():
        stems = unique_names(wanted[index].stem for index in indices)
        for index, stem in zip(indices, stems, strict=True):
            wanted[index] = wanted[index].with_name(stem + wanted[index].suffix)
    return [name.as_posix() for name in wanted]

"""Pascal VOC folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from core.annotations.content import SplitContent
from core.annotations.findings import NUM_EXAMPLES
from core.annotations.images import SUFFIXES
from core.annotations.records import Annotation, ImageRecord
from core.annotations.writers.images import copy_image
from core.files import machine_errors, unique_names

_UNWRITABLE = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What cannot stand in XML 1.0, and what ends a line for some reader of the lists."""


def write_voc(splits: Mapping[str, SplitContent], out: Path) -> list[str]:
    """Write `Annotations/*.xml`, `JPEGImages/` with copies of the images, and `ImageSets/Main/SPLIT.txt`.

    The edges are written as decimals, as they are: pixels count from 0, and a box that reaches over the image stays so.
    Pascal VOC knows images by their name without suffix, whatever their split: names that would clash, or hold what
    XML or a list cannot, are changed.

    Args:
        splits: content by split name; all have the same categories.
        out: an empty folder, which the caller puts in its place when all is written (`core.annotations.staging`).

    Returns:
        Sentences for the user: what was changed or left out, as the format has no place for it.

    Raises:
        DataError: an image is missing.
        MachineError: the folder cannot be written.
    """
    images = [(split, image) for split, content in splits.items() for image in content.annotations.images]
    file_names = _file_names(image.file_name for _, image in images)
    categories = next(iter(splits.values())).annotations.categories if splits else ()
    written_names = unique_names(_plain(category.name) for category in categories)
    class_names = {category.id: name for category, name in zip(categories, written_names, strict=True)}
    annotations_of = {split: content.annotations.by_image() for split, content in splits.items()}
    stems: dict[str, list[str]] = {split: [] for split in splits}
    for (split, image), file_name in zip(images, file_names, strict=True):
        stem = PurePosixPath(file_name).stem
        copy_image(splits[split], image.file_name, out / "JPEGImages" / file_name)
        boxes = [annotation for annotation in annotations_of[split][image.id] if not annotation.is_crowd]
        _write(out / "Annotations" / f"{stem}.xml", _xml(image, file_name, boxes, class_names))
        stems[split].append(stem)
    for split, names in stems.items():
        _write(out / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in names).encode())
    renamed_images = _renamed((image.file_name for _, image in images), file_names)
    renamed_classes = _renamed((category.name for category in categories), written_names)
    return [
        *_note("images renamed, as Pascal VOC has one folder and needs distinct stems", renamed_images),
        *_note("classes renamed, as their names cannot stand in XML", renamed_classes),
        *_losses(splits.values()),
    ]


def _write(path: Path, content: bytes) -> None:
    # Not flushed to disk one by one: that takes most of the time, and the folder is whole or nothing anyway.
    with machine_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _plain(name: str) -> str:
    return _UNWRITABLE.sub("_", name).strip() or "_"


def _file_names(names: Iterable[str]) -> list[str]:
    """Return names without folders and not hidden, whose stems differ also where a system ignores case."""
    stems: list[str] = []
    suffixes: list[str] = []
    for name in names:
        flat = PurePosixPath(name.replace("/", "_"))
        is_image = flat.suffix.lower() in SUFFIXES
        stem = _plain(flat.stem if is_image else flat.name)
        stems.append(f"_{stem[1:]}" if stem.startswith(".") else stem)  # hidden files are not read
        suffixes.append(flat.suffix if is_image else ".jpg")  # images are told by content, but found by their suffix
    return [stem + suffix for stem, suffix in zip(unique_names(stems), suffixes, strict=True)]


def _xml(image: ImageRecord, file_name: str, boxes: Iterable[Annotation], class_names: Mapping[int, str]) -> bytes:
    root = Element("annotation")
    _add(root, folder="JPEGImages", filename=file_name)
    _add(SubElement(root, "size"), width=str(image.width), height=str(image.height), depth="3")
    _add(root, segmented="0")
    for annotation in boxes:
        left, top, width, height = annotation.box_xywh_px
        element = SubElement(root, "object")
        _add(element, name=class_names[annotation.category_id], pose="Unspecified", truncated="0", difficult="0")
        edges = {"xmin": left, "ymin": top, "xmax": left + width, "ymax": top + height}
        _add(SubElement(element, "bndbox"), **{edge: f"{value:.12g}" for edge, value in edges.items()})
    indent(root)
    written: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _add(parent: Element, **texts: str) -> None:
    for tag, text in texts.items():
        SubElement(parent, tag).text = text


def _renamed(before: Iterable[str], after: Iterable[str]) -> list[str]:
    return [f"{old!r} -> {new!r}" for old, new in zip(before, after, strict=True) if old != new]


def _note(sentence: str, examples: list[str]) -> list[str]:
    more = ", ..." if len(examples) > NUM_EXAMPLES else ""
    return [f"{sentence}: {len(examples)} ({', '.join(examples[:NUM_EXAMPLES])}{more})"] if examples else []


def _losses(contents: Iterable[SplitContent]) -> list[str]:
    """Say what of these annotations Pascal VOC has no place for."""
    sets = [content.annotations for content in contents]
    boxes = [annotation for annotations in sets for annotation in annotations.annotations]
    written = [box for box in boxes if not box.is_crowd]
    num_masks = sum(abs(box.area - box.box_xywh_px[2] * box.box_xywh_px[3]) > 1e-3 * box.area for box in written)
    used = {box.category_id for box in written}
    unused = [category.name for category in (sets[0].categories if sets else ()) if category.id not in used]
    notes = [
        f"{what} left out, which Pascal VOC does not know: {count}"
        for what, count in (("crowds", len(boxes) - len(written)), ("areas of masks", num_masks))
        if count
    ]
    return notes + _note("classes left out, as Pascal VOC names only those that have boxes", unused)

"""Folders and files that `prepare-data` can read: which format they are, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.annotations.coco import inspect_coco
from core.annotations.findings import SplitContent
from core.annotations.layouts import find_layout
from core.annotations.voc import is_voc, read_voc
from core.errors import DataError, UsageError, nearest

FORMATS = ("demo", "voc", "coco", "cityscapes")
_SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_HINT = (
    "readable: Pascal VOC (Annotations/*.xml, JPEGImages/), COCO (annotations/instances_train2017.json, train2017/; "
    "annotations/train.json, images/; train/_annotations.coco.json; or one JSON file), "
    "Cityscapes (leftImg8bit/, CocoFormatAnnos/)"
)


@dataclass(frozen=True)
class Source:
    """A source as read.

    Attributes:
        path: the folder or file.
        format: one of `FORMATS`.
        splits: content by split name, in the order train, val, test.
        notes: sentences for the user.
    """

    path: Path
    format: str
    splits: Mapping[str, SplitContent]
    notes: tuple[str, ...] = field(default=())


def read_source(path: Path, source_format: str | None = None, *, one_based: bool = False) -> Source:
    """Read a source, recognising its format unless one is given.

    Args:
        path: a folder, or a COCO JSON file.
        source_format: one of `FORMATS` but demo, or None.
        one_based: subtract 1 from the box edges (Pascal VOC only).

    Raises:
        UsageError: the format is not known, or `one_based` does not fit it.
        DataError: no format fits, or the source has a fault.
    """
    if source_format is not None and source_format not in FORMATS[1:]:
        raise UsageError(
            f"'{source_format}' is no format of a source", where="--format", hint=nearest(source_format, FORMATS[1:])
        )
    if not path.exists():
        raise DataError("no such folder or file", where=str(path))
    source_format = source_format or _recognise(path)
    if one_based and source_format != "voc":
        raise UsageError(f"only Pascal VOC boxes may count from 1, this source is {source_format}", where="--one-based")
    if source_format == "voc":
        folder = read_voc(path, one_based=one_based)
        notes = (f"XML files that are in no list, left out: {folder.num_unlisted}",) if folder.num_unlisted else ()
        return Source(path, source_format, folder.splits, notes)
    files = _layout_files(path, source_format) or (_coco_files(path) if source_format == "coco" else {})
    if not files:
        raise DataError(f"found nothing in the format {source_format}", where=str(path), hint=_HINT)
    splits: dict[str, SplitContent] = {}
    for split, (file, image_root) in files.items():
        annotations, findings = inspect_coco(file, image_root)
        splits[split] = SplitContent(annotations, image_root, findings)
    return Source(path, source_format, splits)


def _recognise(path: Path) -> str:
    if path.is_file():
        if path.suffix.lower() == ".json":
            return "coco"
    else:
        layout = find_layout(path)
        if layout is not None:
            return layout[0]
        if is_voc(path):
            return "voc"
        if _coco_files(path):
            return "coco"
    raise DataError("the format of the annotations is not recognised", where=str(path), hint=_HINT)


def _layout_files(path: Path, source_format: str) -> dict[str, tuple[Path, Path]]:
    layout = find_layout(path) if path.is_dir() else None
    if layout is None or layout[0] != source_format:
        return {}
    return {name: (split.annotation_file, split.image_root) for name, split in layout[1].items()}


def _coco_files(path: Path) -> dict[str, tuple[Path, Path]]:
    """Find COCO files that are not in the official layout: annotation file and image root by split."""
    if path.is_file():
        folder = path.parent
        return {"train": (path, folder / "images" if (folder / "images").is_dir() else folder)}
    found: dict[str, tuple[Path, Path]] = {}
    for split, names in _SPLIT_NAMES.items():
        for name in names:
            candidates = (
                path / "annotations" / f"instances_{name}.json",
                path / "annotations" / f"{name}.json",
                path / name / "_annotations.coco.json",
                path / f"{name}.json",
            )
            file = next((candidate for candidate in candidates if candidate.is_file()), None)
            if file is not None:
                folders = (path / "images" / name, path / name, path / f"{name}2017", path / "images", path)
                found[split] = (file, next(folder for folder in folders if folder.is_dir()))
                break
    return found

"""COCO JSON files: in the official layout, in other common ones, or a single file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.annotations.coco import check_coco
from core.annotations.coco_document import CocoDocument, fields_of, read_document
from core.annotations.content import ReadOptions, Source, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.layouts import cityscapes_splits, coco_splits, require_images
from core.errors import DataError

_Files = dict[str, tuple[Path, list[Path]]]
_WITHOUT_SPLITS = ("_annotations.coco.json", "result.json", "annotations/instances_default.json")
"""What Roboflow, Label Studio and CVAT write for all images together."""

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Names that sources give to each split."""


def is_coco(path: Path) -> bool:
    """Tell whether a file is JSON, or a folder has COCO files where they are looked for."""
    return path.suffix.lower() == ".json" if path.is_file() else bool(_files(path))


def read_coco_files(path: Path, options: ReadOptions | None = None, log: FaultLog | None = None) -> Source:
    """Read a COCO file, or a folder: `annotations/instances_{train,val}2017.json` and `{train,val}2017/`;
    `annotations/{train,val,test}.json` and `images/`; `{train,valid,test}/_annotations.coco.json` (Roboflow).

    A single file, or `_annotations.coco.json`, `result.json` (Label Studio) or `annotations/instances_default.json`
    (CVAT) in a folder, is the train split; its images lie in `images` beside it, or beside it.

    Args:
        path: the file or folder.
        options: the format of boxes, and what may be left out.
        log: is told of images and annotations that cannot be used; by default the first one is raised.

    Raises:
        DataError: no COCO file is found, or one has a fault; see `inspect_coco`.
    """
    files = _files(path)
    if not files:
        raise DataError("no COCO file found", where=str(path), code="F03")
    require_images(coco_splits(path))
    return Source(path, "coco", _read(files, options or ReadOptions(), log or FaultLog()))


def is_cityscapes_in_coco_form(path: Path) -> bool:
    """Tell whether a folder is Cityscapes with boxes in COCO form, as the DE-DETR reference has it."""
    return bool(cityscapes_splits(path))


def read_cityscapes_in_coco_form(path: Path, options: ReadOptions | None = None, log: FaultLog | None = None) -> Source:
    """Read `leftImg8bit` with `CocoFormatAnnos` in or beside it; arguments and errors as in `read_coco_files`."""
    splits = cityscapes_splits(path)
    if not splits:
        raise DataError("no Cityscapes with boxes in COCO form", where=str(path), code="F03")
    require_images(splits)
    files = {name: (split.annotation_file, [split.image_root]) for name, split in splits.items()}
    return Source(path, "cityscapes", _read(files, options or ReadOptions(), log or FaultLog()))


def _read(files: _Files, options: ReadOptions, log: FaultLog) -> dict[str, SplitContent]:
    splits: dict[str, SplitContent] = {}
    for split, (file, image_roots) in files.items():
        document = read_document(file)
        image_root = _root_of_first(document, image_roots)
        annotations, findings = check_coco(document, image_root, options, log)
        splits[split] = SplitContent(annotations, image_root, findings)
    return splits


def _root_of_first(document: CocoDocument, image_roots: Sequence[Path]) -> Path:
    """Return the folder below which the first image lies: programs disagree on what names are relative to."""
    name = fields_of(document.images[0]).get("file_name") if document.images else None
    if not isinstance(name, str) or "\0" in name:
        return image_roots[0]
    return next((folder for folder in image_roots if _is_file(folder / name)), image_roots[0])


def _files(path: Path) -> _Files:
    """Return annotation file and folders that its images may be in, the likeliest first, by split."""
    if path.is_file():
        return {"train": (path, _existing(path.parent / "images", path.parent, *_beside(path)))}
    layout = coco_splits(path)
    if layout:
        return {name: (split.annotation_file, [split.image_root]) for name, split in layout.items()}
    found: _Files = {}
    for split, names in SPLIT_NAMES.items():
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
                found[split] = (file, _existing(*folders))
                break
    if not found:
        file = next((path / name for name in _WITHOUT_SPLITS if (path / name).is_file()), None)
        return {"train": (file, _existing(path / "images", path))} if file else {}
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no system takes
        return False


def _beside(file: Path) -> tuple[Path, ...]:
    """Return where the images of a file in a folder `annotations` may be besides."""
    above = file.absolute().parent.parent
    return (above / "images", above) if file.absolute().parent.name == "annotations" else ()


def _existing(*folders: Path) -> list[Path]:
    return [folder for folder in folders if folder.is_dir()]

"""Folders in the layouts of COCO and Cityscapes, as the DE-DETR reference expects them, read as they stand.

COCO (`ROOT`); COCO's own test split has no boxes, but that of `prepare-data --export coco` does:

    annotations/instances_{train,val,test}2017.json
    {train,val,test}2017/

Cityscapes with boxes in COCO form; the folder of annotations lies beside `ROOT` in the reference's own tree
(`data/cityscapes`, `data/CocoFormatAnnos`), or in it:

    leftImg8bit/{train,val}/
    CocoFormatAnnos/cityscapes_{train,val}_cocostyle.json

Cityscapes as it is downloaded has no boxes yet; `readers.cityscapes` makes them for `prepare-data`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from core.annotations.records import Split
from core.errors import DataError

Layout = Literal["coco", "cityscapes"]

CITYSCAPES_CLASSES = ("person", "car", "train", "rider", "truck", "motorcycle", "bicycle", "bus")
"""The classes of the reference's Cityscapes files and checkpoints, in the order of their ids, 1 to 8."""
CITYSCAPES_IMAGES, CITYSCAPES_LABELS = "leftImg8bit", "gtFine"
"""Cityscapes' own folders of pictures and of labels."""


def find_layout(root: Path) -> tuple[Layout, dict[str, Split]] | None:
    """Return the layout of a folder and the splits found in it; None if it has neither layout.

    Raises:
        DataError: annotations of a split are there, its folder of images is not; or this is Cityscapes without its
            boxes in COCO form.
    """
    coco, cityscapes = coco_splits(root), cityscapes_splits(root)
    require_images(coco or cityscapes)
    if coco:
        return "coco", coco
    if cityscapes:
        return "cityscapes", cityscapes
    if has_cityscapes(root, CITYSCAPES_LABELS):
        raise DataError(
            "this is Cityscapes as it is downloaded, whose labels are to be turned into boxes first",
            where=str(root),
            hint=f"run `dedetr prepare-data {root} --out data` and use that folder",
        )
    if not (root / CITYSCAPES_IMAGES).is_dir():
        return None
    folder = _annotation_folder(root)
    if folder is None:
        raise DataError(
            "this is Cityscapes, but its boxes in COCO form are missing: no folder CocoFormatAnnos in it or beside it",
            where=str(root),
            hint="put cityscapes_train_cocostyle.json and cityscapes_val_cocostyle.json into CocoFormatAnnos; or put "
            "gtFine beside leftImg8bit, and run `dedetr prepare-data`",
        )
    raise DataError("no cityscapes_train_cocostyle.json or cityscapes_val_cocostyle.json", where=str(folder))


def coco_splits(root: Path) -> dict[str, Split]:
    """Return the splits that have an annotation file in the layout of COCO; their images may be missing."""
    splits = (
        Split(name, root / "annotations" / f"instances_{name}2017.json", root / f"{name}2017")
        for name in ("train", "val", "test")
    )
    return {split.name: split for split in splits if split.annotation_file.is_file()}


def cityscapes_splits(root: Path) -> dict[str, Split]:
    """Return the splits that have an annotation file in the layout of Cityscapes; their images may be missing."""
    folder = _annotation_folder(root)
    if folder is None or not (root / CITYSCAPES_IMAGES).is_dir():
        return {}
    splits = (
        Split(name, folder / f"cityscapes_{name}_cocostyle.json", root / CITYSCAPES_IMAGES / name)
        for name in ("train", "val")
    )
    return {split.name: split for split in splits if split.annotation_file.is_file()}


def _annotation_folder(root: Path) -> Path | None:
    folders = (root / "CocoFormatAnnos", root.absolute().parent / "CocoFormatAnnos")
    return next((folder for folder in folders if folder.is_dir()), None)


def require_images(splits: dict[str, Split]) -> None:
    """Check that each split has its folder of images.

    Raises:
        DataError: one has not.
    """
    for split in splits.values():
        if not split.image_root.is_dir():
            raise DataError(
                f"the folder of the {split.name} images is missing",
                where=str(split.image_root),
                hint=f"{split.annotation_file.name} lists its images",
                code="F19",
            )


def cityscapes_folder(root: Path, name: str) -> Path | None:
    """Return Cityscapes' own folder `name`, in `root` or in the folder that its archive was unpacked to, or None."""
    folders = (root / name, root / f"{name}_trainvaltest" / name)
    return next((folder for folder in folders if folder.is_dir()), None)


def cityscapes_archive(root: Path, name: str) -> Path:
    """Return where the official archive of Cityscapes' folder `name` would lie."""
    return root / f"{name}_trainvaltest.zip"


def has_cityscapes(root: Path, name: str) -> bool:
    """Tell whether Cityscapes' own folder `name` or its archive is in `root`."""
    return cityscapes_folder(root, name) is not None or cityscapes_archive(root, name).is_file()

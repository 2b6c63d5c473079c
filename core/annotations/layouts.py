"""Folders in the layouts of COCO and Cityscapes, as the DE-DETR reference expects them, read as they stand.

COCO (`ROOT`):

    annotations/instances_{train,val}2017.json
    {train,val}2017/

Cityscapes with boxes in COCO form; the folder of annotations lies beside `ROOT` in the reference's own tree
(`data/cityscapes`, `data/CocoFormatAnnos`), or in it:

    leftImg8bit/{train,val}/
    CocoFormatAnnos/cityscapes_{train,val}_cocostyle.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from core.annotations.records import Split
from core.errors import DataError

Layout = Literal["coco", "cityscapes"]


def find_layout(root: Path) -> tuple[Layout, dict[str, Split]] | None:
    """Return the layout of a folder and the splits found in it; None if it has neither layout.

    Raises:
        DataError: annotations of a split are there, its folder of images is not.
    """
    coco = {
        name: Split(name, root / "annotations" / f"instances_{name}2017.json", root / f"{name}2017")
        for name in ("train", "val")
    }
    found = _existing(coco)
    if found:
        return "coco", found
    if not (root / "leftImg8bit").is_dir():
        return None
    folders = (root / "CocoFormatAnnos", root.absolute().parent / "CocoFormatAnnos")
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise DataError(
            "this is Cityscapes, but its boxes in COCO form are missing: no folder CocoFormatAnnos in it or beside it",
            where=str(root),
            hint="put cityscapes_train_cocostyle.json and cityscapes_val_cocostyle.json into CocoFormatAnnos",
        )
    cityscapes = {
        name: Split(name, folder / f"cityscapes_{name}_cocostyle.json", root / "leftImg8bit" / name)
        for name in ("train", "val")
    }
    found = _existing(cityscapes)
    if not found:
        raise DataError("no cityscapes_train_cocostyle.json or cityscapes_val_cocostyle.json", where=str(folder))
    return "cityscapes", found


def _existing(splits: dict[str, Split]) -> dict[str, Split]:
    found = {name: split for name, split in splits.items() if split.annotation_file.is_file()}
    for split in found.values():
        if not split.image_root.is_dir():
            raise DataError(
                f"the folder of the {split.name} images is missing",
                where=str(split.image_root),
                hint=f"{split.annotation_file.name} lists its images",
            )
    return found

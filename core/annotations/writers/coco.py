"""COCO folders, in the layout of COCO 2017."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.annotations.coco import write_coco
from core.annotations.content import SplitContent
from core.annotations.writers.images import copy_image
from core.files import join_within, machine_errors


def write_coco_folder(splits: Mapping[str, SplitContent], out: Path) -> list[str]:
    """Write `annotations/instances_SPLIT2017.json` and `SPLIT2017/` with copies of the images.

    The year is part of the only layout that all tools know: DETR's and the DE-DETR reference's code, detectron2, and
    every command here (`--data`) read it as it stands. Ids, areas, crowds and file names stay as they are.

    Args:
        splits: content by split name.
        out: an empty folder, which the caller puts in its place when all is written (`core.annotations.staging`).

    Returns:
        Sentences for the user.

    Raises:
        DataError: an image is missing.
        MachineError: the folder cannot be written.
    """
    for split, content in splits.items():
        folder = out / f"{split}2017"
        write_coco(out / "annotations" / f"instances_{split}2017.json", content.annotations)
        with machine_errors(folder, "make the folder"):
            folder.mkdir(parents=True, exist_ok=True)
        for image in content.annotations.images:
            copy_image(content, image.file_name, join_within(folder, image.file_name))
    return ["the folder has the layout of COCO 2017; every command reads it as it stands (--data)"]

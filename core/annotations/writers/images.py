"""Copies of images, under the names that a format gives them."""

from __future__ import annotations

import shutil
from pathlib import Path

from core.annotations.content import SplitContent
from core.errors import DataError
from core.files import join_within, machine_errors


def copy_image(content: SplitContent, file_name: str, target: Path) -> None:
    """Copy one image of a split, byte for byte; missing parent folders are made.

    Raises:
        DataError: it is missing, or its name leads out of the folder of images.
        MachineError: `target` cannot be written.
    """
    source = join_within(content.image_root, file_name)
    if not source.is_file():
        raise DataError("the image is missing", where=str(source), code="F19")
    with machine_errors(target, "copy an image"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

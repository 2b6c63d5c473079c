"""The table of formats that `prepare-data --export` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from core.annotations.content import SplitContent
from core.annotations.writers.coco import write_coco_folder
from core.annotations.writers.voc import write_voc
from core.annotations.writers.yolo import write_yolo
from core.errors import UsageError, nearest

Writer = Callable[[Mapping[str, SplitContent], Path], list[str]]
"""(content by split, an empty folder) -> notes for the user. Images are copied."""

WRITERS: Mapping[str, Writer] = {"coco": write_coco_folder, "voc": write_voc, "yolo": write_yolo}


def get_writer(name: str) -> Writer:
    """Return the writer of a format.

    Raises:
        UsageError: there is none.
    """
    if name not in WRITERS:
        raise UsageError(f"'{name}' cannot be written", where="--export", hint=nearest(name, WRITERS))
    return WRITERS[name]

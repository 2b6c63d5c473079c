"""A prepared data set as a source: to check it, export it, or split it another way."""

from __future__ import annotations

from pathlib import Path

from core.annotations.coco import inspect_coco
from core.annotations.content import ReadOptions, Source, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.prepared import is_prepared, open_dataset
from core.errors import DataError


def read_prepared(path: Path, options: ReadOptions | None = None, log: FaultLog | None = None) -> Source:
    """Read a folder that `prepare-data` made.

    Args:
        path: the folder.
        options: the format of boxes, and what may be left out.
        log: is told of images and annotations that cannot be used; by default the first one is raised.

    Raises:
        DataError: it is no prepared data set, or one of its files has a fault.
    """
    if not is_prepared(path):
        raise DataError("no prepared data set", where=str(path), code="F03")
    options, log = options or ReadOptions(), log or FaultLog()
    splits: dict[str, SplitContent] = {}
    for name, split in open_dataset(path).splits.items():
        annotations, findings = inspect_coco(split.annotation_file, split.image_root, options, log)
        splits[name] = SplitContent(annotations, split.image_root, findings)
    return Source(path, "prepared", splits)

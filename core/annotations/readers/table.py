"""THE table of formats that `prepare-data` reads. A new format is one more row, and a file beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.annotations.content import ReadOptions, Source
from core.annotations.faults import FaultLog
from core.annotations.readers.coco_files import (
    is_cityscapes_in_coco_form,
    is_coco,
    read_cityscapes_in_coco_form,
    read_coco_files,
)
from core.annotations.readers.voc import is_voc, read_voc
from core.errors import DataError, UsageError, nearest


@dataclass(frozen=True)
class Format:
    """A format of annotations.

    Attributes:
        name: as `--format` takes it. Several rows may share it.
        looks_like: what a user recognises it by.
        recognises: tells whether a file or folder is of it, by names alone.
        read: reads it.
        counts_from_one: whether its box edges may count pixels from 1.
    """

    name: str
    looks_like: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions, FaultLog], Source]
    counts_from_one: bool = False


FORMATS = (
    Format(
        "cityscapes",
        "Cityscapes (leftImg8bit/, CocoFormatAnnos/)",
        is_cityscapes_in_coco_form,
        read_cityscapes_in_coco_form,
    ),
    Format("voc", "Pascal VOC (Annotations/*.xml, JPEGImages/)", is_voc, read_voc, counts_from_one=True),
    Format(
        "coco",
        "COCO (annotations/instances_train2017.json, train2017/; annotations/train.json, images/; "
        "train/_annotations.coco.json; or one JSON file)",
        is_coco,
        read_coco_files,
    ),
)
"""In the order in which they are tried."""


def format_names() -> list[str]:
    """Return the names that `--format` takes, each once."""
    return list(dict.fromkeys(row.name for row in FORMATS))


def read_source(
    path: Path, format_name: str | None = None, options: ReadOptions | None = None, log: FaultLog | None = None
) -> Source:
    """Read a source, recognising its format unless one is given.

    Args:
        path: a folder or file.
        format_name: one of `format_names`, or None.
        options: what the source does not say itself.
        log: is told of entries that cannot be used; by default the first one is raised.

    Raises:
        UsageError: the format is not known, or does not count from one where the options say so.
        DataError: no format fits, or the source has a fault.
    """
    options, log = options or ReadOptions(), log or FaultLog()
    if format_name is not None and format_name not in format_names():
        raise UsageError(
            f"'{format_name}' is no format of a source", where="--format", hint=nearest(format_name, format_names())
        )
    if not path.exists():
        raise DataError("no such folder or file", where=str(path), code="F19")
    rows = [row for row in FORMATS if format_name in (None, row.name)]
    row = next((row for row in rows if row.recognises(path)), None)
    if row is None:
        known = "; ".join(row.looks_like for row in rows)
        message = (
            f"found nothing in the format {format_name}"
            if format_name
            else "the format of the annotations is not recognised"
        )
        raise DataError(message, where=str(path), hint=f"readable: {known}", code="F03")
    if options.one_based and not row.counts_from_one:
        names = ", ".join(row.name for row in FORMATS if row.counts_from_one)
        raise UsageError(f"only {names} boxes may count from 1, this source is {row.name}", where="--one-based")
    return row.read(path, options, log)

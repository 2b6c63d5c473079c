"""THE table of formats that `prepare-data` reads. A new format is one more row, and a file beside this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.annotations.archives import content_folders, unpack_beside
from core.annotations.content import ReadOptions, Source
from core.annotations.faults import FaultLog
from core.annotations.prepared import is_prepared
from core.annotations.readers.cityscapes import is_cityscapes, read_cityscapes
from core.annotations.readers.coco_files import (
    is_cityscapes_in_coco_form,
    is_coco,
    read_cityscapes_in_coco_form,
    read_coco_files,
)
from core.annotations.readers.csv_table import is_csv, read_csv
from core.annotations.readers.per_split import is_per_split, read_per_split
from core.annotations.readers.prepared_folder import read_prepared
from core.annotations.readers.voc import is_voc, read_voc
from core.annotations.readers.yolo import is_yolo, read_yolo
from core.errors import DataError, MachineError, UsageError, nearest


@dataclass(frozen=True)
class Format:
    """A format of annotations.

    Attributes:
        name: as `--format` takes it. Several rows may share it.
        looks_like: what a user recognises it by.
        recognises: tells whether a file or folder is of it, by names alone.
        read: reads it.
        counts_from_one: whether its box edges may count pixels from 1.
        is_json: whether `ReadOptions.boxes` and `allow_unlisted` mean something to it.
    """

    name: str
    looks_like: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions, FaultLog], Source]
    counts_from_one: bool = False
    is_json: bool = False


_OF_ONE_FOLDER = (
    Format(
        "cityscapes",
        "Cityscapes (leftImg8bit/, CocoFormatAnnos/)",
        is_cityscapes_in_coco_form,
        read_cityscapes_in_coco_form,
        is_json=True,
    ),
    Format("cityscapes", "Cityscapes (leftImg8bit/, gtFine/, or their zips)", is_cityscapes, read_cityscapes),
    Format("voc", "Pascal VOC (Annotations/*.xml, JPEGImages/)", is_voc, read_voc, counts_from_one=True),
    Format("yolo", "YOLO (data.yaml; train.txt; images/, labels/)", is_yolo, read_yolo),
    Format(
        "coco",
        "COCO (annotations/instances_train2017.json, train2017/; annotations/train.json, images/; "
        "train/_annotations.coco.json; or one JSON file)",
        is_coco,
        read_coco_files,
        is_json=True,
    ),
    Format(
        "csv",
        "CSV (train.csv with filename, class, xmin, ymin, xmax, ymax; annotations.csv)",
        is_csv,
        read_csv,
        counts_from_one=True,
    ),
)

FORMATS = (
    Format("prepared", "what prepare-data has made (dataset.yaml)", is_prepared, read_prepared, is_json=True),
    Format(
        "per-split",
        "a folder for each split (train/, valid/, test/) in any of the others, as Roboflow exports",
        partial(is_per_split, formats=_OF_ONE_FOLDER),
        partial(read_per_split, formats=_OF_ONE_FOLDER),
        counts_from_one=True,
        is_json=True,
    ),
    *_OF_ONE_FOLDER,
)
"""In the order in which they are tried."""


def format_names() -> list[str]:
    """Return the names that `--format` takes, each once."""
    return list(dict.fromkeys(row.name for row in FORMATS))


def _recognise(path: Path, format_name: str | None, options: ReadOptions) -> tuple[Path, Format]:
    """Return the format of a source, and the folder that is of it: in that of an archive it may lie deeper."""
    rows = [row for row in FORMATS if format_name in (None, row.name)]
    rows += [row for row in FORMATS if row.name == "per-split" and row not in rows]
    for candidate in _candidates(path, options):
        row = next((row for row in rows if row.recognises(candidate)), None)
        if row is not None:
            return candidate, row
    known = "; ".join(row.looks_like for row in rows)
    message = (
        f"found nothing in the format {format_name}"
        if format_name
        else "the format of the annotations is not recognised"
    )
    raise DataError(message, where=str(path), hint=f"readable: {known}", code="F03")


def _candidates(path: Path, options: ReadOptions) -> Iterator[Path]:
    if not (path.is_file() and path.suffix.lower() == ".zip"):
        yield path
        return
    if not options.unpack:
        message = "a check or a dry run writes nothing, so that the archive has to be unpacked before"
        raise UsageError(message, where=str(path), hint="unpack it, and name its folder")
    yield from content_folders(unpack_beside(path))


def read_source(
    path: Path, format_name: str | None = None, options: ReadOptions | None = None, log: FaultLog | None = None
) -> Source:
    """Read a source, recognising its format unless one is given.

    Args:
        path: a folder or file; a ZIP archive is unpacked to a folder of its name beside it.
        format_name: one of `format_names`, or None.
        options: what the source does not say itself.
        log: is told of entries that cannot be used; by default the first one is raised.

    Raises:
        UsageError: the format is not known, or does not count from one where the options say so.
        DataError: no format fits, or the source has a fault.
    """
    options, log = options or ReadOptions(), log or FaultLog()
    format_name = format_name.lower() if format_name else None
    if format_name is not None and format_name not in format_names():
        raise UsageError(
            f"'{format_name}' is no format of a source", where="--format", hint=nearest(format_name, format_names())
        )
    if not os.path.exists(path):  # noqa: PTH110 - Path raises for names that are too long
        raise DataError("no such folder or file", where=str(path), hint="check the path", code="F19")
    given = path
    path, row = _recognise(path, format_name, options)
    if options.one_based and not row.counts_from_one:
        names = ", ".join(row.name for row in FORMATS if row.counts_from_one)
        raise UsageError(f"only {names} boxes may count from 1, this source is {row.name}", where="--one-based")
    if not row.is_json and (options.boxes != "xywh" or options.allow_unlisted):
        flag = "--boxes" if options.boxes != "xywh" else "--allow-unlisted"
        message = f"means something to COCO files alone, this source is {row.name}"
        raise UsageError(message, where=flag, hint="leave it out")
    try:
        source = row.read(path, options, log)
    except OSError as error:
        hint = "check the permissions of the source"
        raise MachineError(f"cannot be read: {error.strerror}", where=str(error.filename or path), hint=hint) from error
    if path == given:
        return source
    note = f"{given} was unpacked to {path}: the data set uses the images there"
    return replace(source, path=given, notes=(note, *source.notes))

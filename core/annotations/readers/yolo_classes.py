"""The classes of a YOLO data set: a list or mapping in data.yaml, or a file with one name a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from core.annotations.json_values import text
from core.annotations.readers.yolo_lines import read_text
from core.annotations.readers.yolo_yaml import Entry
from core.errors import DataError

_MAX_CLASSES = 100_000


def classes_of_entries(names: Entry | None, count: Entry | None) -> dict[int, str] | None:
    """Return names by id from the keys `names` and `nc` of data.yaml; None without both.

    Raises:
        DataError: they cannot be used, or contradict each other.
    """
    if names is None or names.value is None:
        return _numbered(count)
    if isinstance(names.value, str):
        raise DataError("names must be a list, or a mapping from ids to names", where=names.place, code="F02")
    pairs: Iterable[tuple[int, str | None]] = enumerate(names.value)
    if isinstance(names.value, dict):
        pairs = [(whole_number(key, names.place), name) for key, name in names.value.items()]
    return _checked(pairs, names.place, count)


def classes_of_files(files: Sequence[Path], count: Entry | None) -> dict[int, str] | None:
    """Return names by id from files with one name a line, which must agree; None without files and count.

    Raises:
        DataError: a file cannot be used, or they contradict each other or the count.
    """
    first: dict[int, str] | None = None
    for file in files:
        names: list[str | None] = [line.strip() for line in read_text(file).rstrip().splitlines()]
        classes = _checked(enumerate(names), str(file), count)
        if first is not None and classes != first:
            raise DataError(
                f"its class names differ from those of {files[0]}", where=str(file), hint="keep one of them", code="F28"
            )
        first = classes
    return _numbered(count) if first is None else first


def whole_number(word: object, place: str) -> int:
    """Return a class id or a count, from 0 to 100,000.

    Raises:
        DataError: it is none.
    """
    if not isinstance(word, str) or not re.fullmatch(r"[0-9]{1,9}", word) or int(word) > _MAX_CLASSES:
        shown = repr(word)[:40] if isinstance(word, str) else "something else"
        raise DataError(f"must be a whole number from 0 to {_MAX_CLASSES}, is {shown}", where=place, code="F16")
    return int(word)


def _numbered(count: Entry | None) -> dict[int, str] | None:
    if count is None or count.value is None:
        return None
    return {ident: str(ident) for ident in range(whole_number(count.value, count.place))}


def _checked(pairs: Iterable[tuple[int, str | None]], place: str, count: Entry | None) -> dict[int, str]:
    classes: dict[int, str] = {}
    ids: dict[str, int] = {}
    for ident, written in pairs:
        name = text(written, f"{place}: name of class {ident}", code="F17")
        if ident in classes:
            raise DataError(f"the class {ident} has two names", where=place, code="F16")
        if name in ids:
            raise DataError(
                f"the class name {name!r} is used twice, by {ids[name]} and {ident}",
                where=place,
                hint="give every class its own name",
                code="F17",
            )
        classes[ident], ids[name] = name, ident
    if not classes:
        raise DataError("there are no class names", where=place, code="F17")
    if count is not None and count.value is not None:
        num_classes = whole_number(count.value, count.place)
        if num_classes != len(classes):
            raise DataError(
                f"{num_classes} classes are stated, but there are {len(classes)} names",
                where=count.place,
                hint="correct the number, or the names",
                code="F02",
            )
    return dict(sorted(classes.items()))

"""Text files of a YOLO data set, line by line, and what is wrong in them, gathered over all files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from core.annotations.faults import FaultLog
from core.annotations.findings import NUM_EXAMPLES
from core.annotations.json_values import read_bytes
from core.errors import DataError

_Result = TypeVar("_Result")


class Line(NamedTuple):
    """A line, and its place as `file:line`."""

    text: str
    place: str


def read_text(path: Path) -> str:
    """Return a text file's content.

    Raises:
        DataError: it is missing, no file, cannot be read, or is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise DataError("is not a file", where=str(path), code="F01")
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not text in UTF-8: byte {error.start} is {error.object[error.start]:#04x}",
            where=str(path),
            hint="save it as UTF-8",
            code="F01",
        ) from error


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a text file that are not blank, without the space around them; errors as `read_text`."""
    for number, text in enumerate(read_text(path).splitlines(), start=1):
        if text.strip():
            yield Line(text.strip(), f"{path}:{number}")


class LineFaults:
    """Lines that cannot be used: a thousand wrong lines are one fault with a thousand places."""

    def __init__(self) -> None:
        self._errors: dict[str, list[DataError]] = defaultdict(list)

    def add(self, error: DataError) -> None:
        """Keep the error of one line."""
        self._errors[error.code or "F02"].append(error)

    def attempt(self, read: Callable[[Line], _Result], line: Line) -> _Result | None:
        """Return what reading a line gives; None if it cannot be used."""
        try:
            return read(line)
        except DataError as error:
            self.add(error)
            return None

    def tell(self, log: FaultLog) -> None:
        """Tell the log of every kind of fault, and forget them.

        Raises:
            DataError: the first kind, unless faults are dropped.
        """
        errors, self._errors = self._errors, defaultdict(list)
        for code in sorted(errors):
            log.invalid(_merged(errors[code]))


def _merged(errors: list[DataError]) -> DataError:
    first = errors[0]
    places = [error.where or "" for error in errors]
    message = first.message
    if len(errors) > 1:
        shown = ", ".join(places[:NUM_EXAMPLES]) + (", ..." if len(places) > NUM_EXAMPLES else "")
        message = f"{message} ({len(errors)} such: {shown})"
    return DataError(message, where=first.where, hint=first.hint, code=first.code, places=places)

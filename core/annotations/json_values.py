"""JSON files and the values in them, checked with errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import DataError

MAX_ID = 2**63 - 1


def load_json(path: Path) -> Any:
    """Parse a JSON file. NaN and Infinity, which Python writes, are let through for later checks.

    Raises:
        DataError: the file is missing or is not JSON; names line and column.
    """
    return parse_json(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return what an annotation file holds.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError("no such annotation file", where=str(path), code="F01") from None
    except OSError as error:
        raise DataError(f"cannot read the annotation file: {error.strerror}", where=str(path), code="F01") from error


def parse_json(content: bytes, path: Path) -> Any:
    """Parse JSON as `load_json` does; `path` names it in errors."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        if content.lstrip().startswith(b"<"):
            raise DataError(
                "this looks like XML, not JSON",
                where=str(path),
                hint="convert Pascal VOC files with `dedetr prepare-data FOLDER`",
                code="F03",
            ) from error
        raise DataError(
            f"not valid JSON: {error.msg}",
            where=f"{path}:{error.lineno}:{error.colno}",
            hint="the file may be cut off; copy or export it again",
            code="F01",
        ) from error
    except RecursionError as error:
        raise DataError("not valid JSON: nested too deeply", where=str(path), code="F01") from error
    except ValueError as error:  # text that is not UTF-8, a number of thousands of digits
        raise DataError(f"not valid JSON: {error}", where=str(path), code="F01") from error


def whole(value: Any, where: str, least: int | None = None, *, code: str = "F02") -> int:
    """Return a whole number of 64 bits; with `least`, a size, which may be written as 640.0; `code` of its fault."""
    number = int(value) if type(value) is float and value.is_integer() else value
    if value is None:
        raise DataError(f'"{_key(where)}" is missing', where=where, code=code)
    if type(number) is not int or (type(value) is float and least is None):
        raise DataError(f"must be a whole number, is {shown(value)}", where=where, code=code)
    if abs(number) > MAX_ID or (least is not None and number < least):
        raise DataError(
            f"must be {'positive' if least else 'a 64-bit number'}, is {shown(number)}", where=where, code=code
        )
    return number


def text(value: Any, where: str, *, code: str = "F02") -> str:
    """Return text that is not empty; `code` is of its faults."""
    if value is None:
        raise DataError(f'"{_key(where)}" is missing', where=where, code=code)
    if not isinstance(value, str):
        raise DataError(f"must be text, is {kind(value)}", where=where, code=code)
    if not value.strip():
        raise DataError("must not be empty", where=where, code=code)
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError("is not valid Unicode", where=where, code=code)
    return value


def _key(where: str) -> str:
    return where.rpartition(": ")[2].rpartition(".")[2]


def kind(value: Any) -> str:
    """Name the kind of a JSON value for people."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "missing or null"}
    return kinds.get(type(value), "a number")


def shown(value: Any) -> str:
    """Write a JSON value for people, shortened."""
    return kind(value) if isinstance(value, (list, dict)) else repr(value)[:40]

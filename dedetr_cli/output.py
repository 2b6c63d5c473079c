"""What a person or a program reads: results on stdout, everything else on stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

SCHEMA_VERSION = 1


def stdout() -> Console:
    """Return a console on stdout; styles are off where it is no terminal."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def stderr() -> Console:
    """Return a console on stderr; styles are off where it is no terminal."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: str, hint: str | None) -> None:
    """Print `error: ...` and perhaps `hint: ...`, a line each, literally (no markup, no control characters)."""
    console = stderr()
    console.print(Text.assemble(("error: ", "bold red"), _one_line(message)))
    if hint:
        console.print(Text.assemble(("hint: ", "bold"), _one_line(hint)))


def print_note(message: str) -> None:
    """Print a line about what is going on to stderr, literally."""
    stderr().print(Text(_one_line(message)))


def print_warning(message: str) -> None:
    """Print a warning to stderr, literally."""
    stderr().print(Text.assemble(("warning: ", "bold yellow"), _one_line(message)))


def print_json(command: str, result: Mapping[str, Any]) -> None:
    """Print one JSON object with its schema version and command."""
    document = {"schema_version": SCHEMA_VERSION, "command": command, **result}
    sys.stdout.write(json.dumps(document, default=_to_json, indent=2, allow_nan=False) + "\n")


def as_dict(result: Any) -> dict[str, Any]:
    """Return a result dataclass as a dictionary that `print_json` can print."""
    return dataclasses.asdict(result)


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Make a table: the first column left, the others right; texts literal, None as a dash."""
    made = Table(title=Text(title), title_justify="left", header_style="bold")
    for position, header in enumerate(headers):
        made.add_column(Text(header), justify="left" if position == 0 else "right")
    for row in rows:
        made.add_row(*(Text(cell_text(cell)) for cell in row))
    return made


def cell_text(value: object) -> str:
    """Return how a value looks in a table: shares with three decimals, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "-"
    return _one_line(str(value))


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _to_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")

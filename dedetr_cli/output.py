"""What a person or a program reads: results on stdout, everything else on stderr."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.errors import DedetrError
from core.streams import send_nowhere

SCHEMA_VERSION = 1

_state = {"json_printed": False}


class _PatientStream:
    """A standard stream that falls silent when its terminal is gone, and lets the command go on."""

    def __init__(self, name: str) -> None:
        self._name = name

    def write(self, text: str) -> int:
        """Write to the stream, whichever it is at this time."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush it."""
        self._try(lambda stream: stream.flush())

    @property
    def rich_proxied_file(self) -> _PatientStream:
        """What rich writes to while a live bar has put a stream of its own in the place of the standard one."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)

    def _stream(self) -> IO[str]:
        stream: IO[str] = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)

    def _try(self, action: Callable[[IO[str]], object]) -> None:
        stream = self._stream()
        try:
            action(stream)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            silence(stream)


class _PatientConsole(Console):
    """A console that falls silent when its reader goes away (`| head`), and lets the command go on."""

    def on_broken_pipe(self) -> None:
        """Send what is still to come nowhere."""
        silence(self.file)


def silence(stream: IO[str]) -> None:
    """Send everything that is written to a stream nowhere from now on."""
    send_nowhere([stream.fileno()])


@cache
def stdout() -> Console:
    """Return the console on stdout; styles are off where it is no terminal."""
    stream = cast("IO[str]", _PatientStream("stdout"))
    return _PatientConsole(file=stream, highlight=False, soft_wrap=not sys.stdout.isatty())


@cache
def stderr() -> Console:
    """Return the console on stderr, one for all, so that lines go above a live bar and not through it."""
    return _PatientConsole(file=cast("IO[str]", _PatientStream("stderr")), highlight=False, soft_wrap=True)


def print_line(text: str) -> None:
    """Print a line of the result, literally (no markup, no control characters)."""
    stdout().print(Text(one_line(text)))


def print_error(message: str, hint: str | None, code: str | None = None) -> None:
    """Print `error: ... [code]` and perhaps `hint: ...`, a line each, literally (no markup, no control characters)."""
    console = stderr()
    shown_code = f" [{code}]" if code else ""
    console.print(Text.assemble(("error: ", "bold red"), one_line(message), (shown_code, "dim")))
    if hint:
        console.print(Text.assemble(("hint: ", "bold"), one_line(hint)))


def print_note(message: str) -> None:
    """Print a line about what is going on to stderr, literally."""
    stderr().print(Text(one_line(message)))


def print_warning(message: str) -> None:
    """Print a warning to stderr, literally."""
    stderr().print(Text.assemble(("warning: ", "bold yellow"), one_line(message)))


def print_json(command: str | None, result: Mapping[str, Any], error: DedetrError | None = None) -> None:
    """Print one JSON object with its schema version, its command, and the error if there was one."""
    document = {"schema_version": SCHEMA_VERSION, "command": command, **result}
    if error is not None:
        document["error"] = {
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
            "exit_code": error.exit_code,
            "code": error.code,
        }
    text = json.dumps(document, default=_to_json, indent=2, allow_nan=False)
    _state["json_printed"] = True
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)


def print_json_error(command: str | None, error: DedetrError) -> None:
    """Print the JSON object of a command that failed, unless one was printed: stdout holds one or none."""
    if not _state["json_printed"]:
        print_json(command, {}, error)


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
    return one_line(str(value))


def one_line(text: str) -> str:
    """Return a text with a space for every character that a terminal would act upon."""
    return "".join(character if character.isprintable() else " " for character in text)


def _to_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")

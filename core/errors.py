"""Every error that a user can cause, with the exit code of the command it ends.

Raise the most specific class. `message` says what is wrong and why, `where` names the place (a file, a
JSON path, a flag), `hint` says the one thing to do next. The command line prints them and exits with
`exit_code`; no other module prints or exits.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Sequence

_EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGHUP": 129}
SIGNAL_EXIT_CODES = {signal.Signals[name]: code for name, code in _EXIT_CODES.items() if hasattr(signal, name)}
"""Exit codes of a command that was asked to stop, by the signals that this system knows (Slurm warns by SIGUSR1)."""


class DedetrError(Exception):
    """Base of all errors that dedetr raises on purpose.

    Args:
        message: what is wrong and why, one sentence without a full stop.
        where: the file, JSON path or flag that is to be mended.
        hint: one thing the user can do next.
        code: the number under which docs/faults.md explains this kind of fault, such as "F08".
    """

    exit_code: int = 1

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(DedetrError):
    """A flag, a configuration key or a combination of them cannot be used."""

    exit_code = 2


class DataError(DedetrError):
    """Images or annotations are missing, damaged or contradict each other.

    Args:
        message: see `DedetrError`, as all but the last.
        where: likewise.
        hint: likewise.
        code: likewise.
        places: all places of this fault, where there are several.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        code: str | None = None,
        places: Sequence[str] = (),
    ) -> None:
        super().__init__(message, where=where, hint=hint, code=code)
        self.places = tuple(places)


class CheckpointError(DedetrError):
    """A checkpoint or weight file is missing, damaged, unsafe or does not fit the model."""

    exit_code = 4


class MachineError(DedetrError):
    """The machine lacks something: a device, disk space, a permission, an optional package."""

    exit_code = 5


class ProcessLost(MachineError):  # noqa: N818 (what happened, and to whom)
    """Another process of the run is gone; what ended it is the error to read."""


class DivergedError(DedetrError):
    """Training produced a loss that is not a finite number."""

    exit_code = 6


class Interrupted(DedetrError):  # noqa: N818 (no error: somebody asked for it)
    """Training was asked to stop by a signal, and did.

    Args:
        message: which signal, and what was saved.
        exit_code: 130 after Ctrl-C, 143 after SIGTERM or SIGUSR1, 129 after SIGHUP.
        hint: how to go on.
    """

    def __init__(self, message: str, *, exit_code: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint that names the choice most like `word`, or all choices when none is near."""
    known = list(choices)
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if matches:
        return f"did you mean '{matches[0]}'?"
    return "known: " + ", ".join(known)

"""What an error is that nothing before has made one of ours: the user's wish, the machine's fault, or a bug."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from core.errors import DedetrError, MachineError
from core.files import FULL_DISK
from dedetr_cli.stopping import interrupted

_OURS = ("core", "dedetr_cli")
_ROOT = Path(__file__).parents[1]


def explain(error: BaseException) -> DedetrError:
    """Return the error that a user shall read, with its exit code."""
    if any(isinstance(each, KeyboardInterrupt) for each in _chain(error)):
        # Extensions that are stopped while they are loaded raise an ImportError of it, for example.
        return interrupted()
    place = traceback.extract_tb(error.__traceback__)[-1]
    file = _foreign_module(error)
    if file is not None:
        return MachineError(
            f"a package that dedetr needs cannot be loaded: {_one_line(error)}",
            where=file,
            hint="`dedetr doctor` looks at all of them; `python -m pip check` names those that are missing",
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return MachineError(
            f"out of memory: {_one_line(error)}",
            hint="close other programs, or use a smaller model, smaller images or smaller batches",
        )
    if isinstance(error, OSError) and error.errno in (*FULL_DISK, errno.EROFS):
        hint = "free some space on this disk" if error.errno in FULL_DISK else "name another folder"
        where = None if error.filename is None else str(error.filename)
        return MachineError(f"cannot write: {os.strerror(error.errno)}", where=where, hint=hint)
    return DedetrError(
        f"this is a bug in dedetr: {type(error).__name__}: {error} ({place.filename}:{place.lineno})",
        hint="please report it, with what the same command prints with --debug",
    )


def _foreign_module(error: BaseException) -> str | None:
    """Return the file of somebody else's package that could not be loaded, or the one that misses it; None: neither.

    A torchvision that was built for another PyTorch raises a RuntimeError then, a missing library an OSError.
    """
    frames = traceback.extract_tb(error.__traceback__)
    loaded = (frame.filename for frame in frames if frame.name == "<module>" and not _is_ours(frame.filename))
    is_missing = isinstance(error, ImportError) and error.name and error.name.partition(".")[0] not in _OURS
    return next(loaded, frames[-1].filename if is_missing else None)


def _is_ours(file: str) -> bool:
    return any(Path(file).is_relative_to(_ROOT / package) for package in _OURS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]

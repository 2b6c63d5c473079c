"""Files: written whole or not at all, kept inside their folder, named by their hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from core.errors import DataError, MachineError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the `OSError` of a write for which there is no space: on the disk, in the user's share, in one file."""

YAML_SLIPS = (ValueError, LookupError, ArithmeticError, AttributeError, TypeError, RecursionError)
"""What PyYAML raises besides its own errors: for a date that is none, `!!bool maybe`, `!!int ''`, very deep nesting."""

_SEPARATORS = '<>:"/\\|?*'
_WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
_NOT_PLAIN = re.compile(r"[\\:\0]|\A/|(?:\A|/)\.{0,2}\Z")
_MAX_SAFE_BYTES, _MAX_BYTES = 100, 200


@contextmanager
def machine_errors(path: Path, action: str) -> Iterator[None]:
    """Turn an `OSError` of writing `path` into a `MachineError` that says what could not be done."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = (
            "free some space on this disk"
            if error.errno in FULL_DISK
            else "check the folder's permissions, or name another folder"
        )
        raise MachineError(f"cannot {action}: {reason}", where=str(path), hint=hint) from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` beside `path`, flush it to disk and rename it, so that no reader sees half a file.

    Missing parent folders are made.

    Raises:
        MachineError: the folder cannot be written or the disk is full.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with machine_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            # mkstemp makes files that only their owner may read; use what a plain open() would give.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, content: Any) -> None:
    """Write plain values, dataclasses' dictionaries and paths as JSON; see `write_atomic`."""
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")


def require_writable_folder(folder: Path) -> None:
    """Check that a folder can be written, or made where it is missing; nothing is made.

    Raises:
        MachineError: it cannot, or is a file.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise MachineError("is a file, not a folder", where=str(existing), hint="name another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise MachineError(
            f"cannot write to {existing}", where=str(folder), hint="check its permissions, or name another folder"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fsync_folder(folder: Path) -> None:
    """Flush a folder's own entries, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def join_within(root: Path, name: str) -> Path:
    """Join a file name that comes from outside (an annotation file, say) to `root`, and stay inside.

    Args:
        root: the folder that must hold the file.
        name: a relative path with `/` between its parts.

    Returns:
        The path below `root`, not resolved, so that its name stays the user's own.

    Raises:
        DataError: the name is empty, absolute, holds `..` or a NUL byte, or is a link that leads out.
    """
    windows = PureWindowsPath(name)
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or "\0" in name or name.startswith("/") or windows.drive or windows.root or ".." in parts:
        raise DataError(
            f"file name {name!r} escapes image root", where=str(root), hint="use a path below it", code="F31"
        )
    joined = root.joinpath(*PurePosixPath(name).parts)
    try:
        resolved, base = joined.resolve(), root.resolve()
    except (OSError, RuntimeError) as error:  # before Python 3.13 a circle of links is a RuntimeError
        raise DataError(f"file name {name!r} cannot be resolved: {error}", where=str(root), code="F31") from error
    if not resolved.is_relative_to(base):
        raise DataError(
            f"file name {name!r} escapes image root by a link",
            where=str(root),
            hint="copy the file below the image root, or name its real folder as the root",
            code="F31",
        )
    return joined


class NamesWithin:
    """Checks many file names that come from outside as `join_within` does, and resolves each of their folders once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._prefix = f"{root}/"
        self._folders_inside = {""}

    def require(self, name: str) -> None:
        """Check one name.

        Raises:
            DataError: see `join_within`.
        """
        if not self._is_plain(name):
            join_within(self._root, name)

    def _is_plain(self, name: str) -> bool:
        """Say whether a name is harmless by its letters, its folder is inside, and it is no link."""
        if _NOT_PLAIN.search(name):
            return False
        folder = name.rpartition("/")[0]
        if folder not in self._folders_inside:
            try:
                join_within(self._root, folder)
            except DataError:  # though a link in it may lead back inside
                return False
            self._folders_inside.add(folder)
        return not os.path.islink(self._prefix + name)  # noqa: PTH114 - making a Path takes longer than the check


def safe_name(text: str) -> str:
    """Return a text as the name of a file or folder on any system: one part, not hidden, at most 100 bytes."""
    name = "".join("_" if letter in _SEPARATORS or not letter.isprintable() else letter for letter in text)
    name = name.encode()[:_MAX_SAFE_BYTES].decode(errors="ignore").strip(" .")
    return f"_{name}" if not name or name.partition(".")[0].upper() in _WINDOWS_DEVICES else name


def unique_names(names: Iterable[str]) -> list[str]:
    """Return the names, numbered where one came before: a, a-2. They stay apart also where a system ignores case.

    What is longer than 200 bytes is cut, so that a suffix still fits.
    """
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        encoded = os.fsencode(name)
        chosen = short = name if len(encoded) <= _MAX_BYTES else encoded[:_MAX_BYTES].decode(errors="ignore")
        while _folded(chosen) in taken:
            numbers[short] = numbers.get(short, 1) + 1
            chosen = f"{short}-{numbers[short]}"
        taken.add(_folded(chosen))
        unique.append(chosen)
    return unique


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, reading it in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

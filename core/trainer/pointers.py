"""Names that point to a folder beside them, such as `latest` and `best`."""

from __future__ import annotations

import os
from pathlib import Path

from core.files import fsync_folder, machine_errors, write_atomic

_MAX_POINTER_BYTES = 4096


def point_to(pointer: Path, target: Path) -> None:
    """Make `pointer` lead to `target`, in one step: a reader finds the old or the new target, never none.

    The pointer is a relative symbolic link, so that the folder above both can be moved. Where the file system
    has no links it is a text file with the same relative path.

    Raises:
        MachineError: the folder cannot be written, or something that is no pointer stands in its place.
    """
    relative = os.path.relpath(target, pointer.parent)
    beside = pointer.with_name(f".{pointer.name}.{os.getpid()}.tmp")
    with machine_errors(pointer, "set the pointer"):
        try:
            beside.unlink(missing_ok=True)
            beside.symlink_to(relative, target_is_directory=True)
        except (OSError, NotImplementedError):
            write_atomic(pointer, relative + "\n")
            return
        try:
            beside.replace(pointer)
        finally:
            beside.unlink(missing_ok=True)
        fsync_folder(pointer.parent)


def pointed_to(pointer: Path) -> Path | None:
    """Return the folder that `pointer` leads to, or None when there is no pointer or it leads nowhere."""
    if pointer.is_file():
        if pointer.stat().st_size > _MAX_POINTER_BYTES:
            return None
        relative = pointer.read_bytes().decode("utf-8", "replace").strip()
        target = pointer.parent / relative if relative else pointer
    elif pointer.is_symlink():
        target = pointer.parent / pointer.readlink()
    else:
        target = pointer
    return Path(os.path.normpath(target)) if target.is_dir() else None

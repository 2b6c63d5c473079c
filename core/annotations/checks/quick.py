"""The check of images before every start: what was good and has not changed since is not looked at again.

What was good is remembered in `$XDG_CACHE_HOME/dedetr/checked` (by default `~/.cache/dedetr/checked`), one file for
each folder of images. It is only ever a help: where it cannot be read or written, every image is looked at.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import msgspec

from core.annotations.checks.images import Check, check_images
from core.annotations.images import check_image
from core.annotations.records import AnnotationSet
from core.errors import MachineError
from core.files import write_atomic

FORMAT_VERSION = 1
"""To be raised when `check_image` gets stricter: what it found good before must then be looked at again."""
MAX_IMAGES = 1 << 18
"""Of one folder that are remembered; the ones remembered first go first."""
MAX_FOLDERS = 64
"""Whose memory is kept; the one written longest ago goes first."""
_MAX_BYTES = 1 << 27

_Seen = tuple[int, int, int, int]
"""Bytes, time of the last change in nanoseconds, width and height that the annotations state."""


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    """What stands in a file of the cache; `good` is by path below the folder."""

    format_version: int
    image_root: str
    good: dict[str, _Seen]


def check_images_quickly(split: str, annotations: AnnotationSet, image_root: Path) -> AnnotationSet:
    """Check that every listed image can be used, as `check_images` does; those that were good before are only counted.

    Raises:
        DataError: there are no images, or some cannot be used.
    """
    with remembered_check(image_root) as check:
        return check_images(split, annotations, image_root, check=check)


@contextmanager
def remembered_check(image_root: Path, check: Check = check_image) -> Iterator[Check]:
    """Give a check that passes over files that it found good before.

    A file is the same as before while its path, its length, the time of its last change and the size that the
    annotations state are. What is learned is written when the context ends, an error included.

    Args:
        image_root: the folder that the images are below.
        check: looks at one image.
    """
    root = os.path.realpath(image_root)
    file = _cache_file(root)
    good = _read(file, root) if file else {}
    learned: dict[str, _Seen] = {}

    def check_once(path: Path, expected_size: tuple[int, int]) -> None:
        key = os.path.relpath(path, image_root)
        try:
            state = path.stat()
        except OSError:
            check(path, expected_size)
            return
        # What it was before the look: a change during it is noticed the next time.
        seen = (state.st_size, state.st_mtime_ns, *expected_size)
        if good.get(key) != seen:
            check(path, expected_size)
            learned[key] = seen

    try:
        yield check_once
    finally:
        if file and learned:
            _write(file, root, good, learned)


def _cache_file(root: str) -> Path | None:
    """Return where the memory of a folder is kept; None where there is no home."""
    try:
        named = Path(os.environ.get("XDG_CACHE_HOME", ""))
        cache = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "dedetr" / "checked" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.json"


def _read(file: Path, root: str) -> dict[str, _Seen]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            return {}
        memory = msgspec.json.decode(file.read_bytes(), type=_Memory)
    except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return {}
    return memory.good if (memory.format_version, memory.image_root) == (FORMAT_VERSION, root) else {}


def _write(file: Path, root: str, good: dict[str, _Seen], learned: dict[str, _Seen]) -> None:
    kept = {**{key: seen for key, seen in good.items() if key not in learned}, **learned}
    newest = dict(islice(kept.items(), max(0, len(kept) - MAX_IMAGES), None))
    with suppress(MachineError, OSError, ValueError):  # ValueError: a name that is no Unicode
        write_atomic(file, msgspec.json.encode(_Memory(FORMAT_VERSION, root, newest)))
        files = sorted(file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for oldest in files[: max(0, len(files) - MAX_FOLDERS)]:
            oldest.unlink()

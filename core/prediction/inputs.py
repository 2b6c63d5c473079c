"""From what a user names to image files."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from core.annotations.images import SUFFIXES
from core.errors import DataError


def collect_images(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the image files that the inputs name, each once, in the inputs' order.

    An input is a file of any name; a folder, which stands for the image files directly in it, by name; or a
    glob pattern (`**` for folders below), likewise sorted.

    Raises:
        DataError: an input names no image.
    """
    collected: dict[Path, Path] = {}
    for item in inputs:
        found = _images_of(Path(item))
        if not found:
            raise DataError(
                "no image found" if Path(item).is_dir() or glob.has_magic(str(item)) else "there is no such file",
                where=str(item),
                hint="name image files, a folder that holds them, or a quoted pattern such as 'photos/**/*.jpg'",
            )
        for path in found:
            collected.setdefault(path.resolve(), path)
    return list(collected.values())


def _images_of(path: Path) -> list[Path]:
    if path.is_dir():
        try:
            return sorted(entry for entry in path.iterdir() if _is_image(entry))
        except OSError as error:
            raise DataError(f"the folder cannot be read: {error.strerror}", where=str(path)) from error
    if path.exists():
        return [path]
    matches = (Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns too)
    return sorted(match for match in matches if _is_image(match))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()

"""Pictures that are there more than once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from core.annotations.content import SplitContent
from core.errors import DataError
from core.files import join_within, sha256_of

Picture = tuple[str, str]
"""Split and file name."""


def find_repeats(splits: Mapping[str, SplitContent]) -> dict[Picture, Picture]:
    """Map every picture whose file equals an earlier one's to that one; only files of equal length are read.

    Raises:
        DataError: a file cannot be read.
    """
    of_length: dict[int, list[tuple[Picture, Path]]] = defaultdict(list)
    for split, content in splits.items():
        for image in content.annotations.images:
            path = join_within(content.image_root, image.file_name)
            of_length[_length(path)].append(((split, image.file_name), path))
    repeats: dict[Picture, Picture] = {}
    for files in of_length.values():
        first_of_hash: dict[str, Picture] = {}
        for picture, path in files if len(files) > 1 else ():
            first = first_of_hash.setdefault(_hash(path), picture)
            if first != picture:
                repeats[picture] = first
    return repeats


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"the image cannot be read: {error.strerror or error}", where=str(path), code="F19")

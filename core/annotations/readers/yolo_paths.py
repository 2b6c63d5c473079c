"""Paths that a YOLO data set names, found in its folder though they may have been written on another machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath

from core.annotations.faults import FaultLog
from core.annotations.images import SUFFIXES
from core.annotations.readers.yolo_lines import LineFaults, read_lines
from core.errors import DataError
from core.files import NamesWithin

_MAX_LETTERS, _MAX_PARTS = 4096, 64
_MAX_LOOKS = 100_000
_MAX_DEPTH = 100
_SPLIT_FOLDER = re.compile(r"(train|val|valid|validation|test)\d*", re.IGNORECASE)


def is_image(name: str) -> bool:
    """Tell by its name whether a file is an image that is read."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is the system's own, such as `._a.jpg` in archives from a Mac."""
    return name.startswith(".") or name == "__MACOSX"


def list_folder(folder: Path) -> list[Path]:
    """Return what is in a folder by name, without what is hidden; nothing if it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError:
        return []


def images_below(folder: Path) -> list[str]:
    """Return the sorted names of the images in a folder and in those below it; links to folders are not followed."""
    return sorted(name for name in files_below(folder) if is_image(name))


def first_images(folder: Path, number: int) -> list[str]:
    """Return a few of the names that `images_below` returns; none if a hundred thousand other files come first."""
    files = islice(files_below(folder), _MAX_LOOKS)
    return list(islice(filter(is_image, files), number))


def files_below(folder: Path) -> Iterator[str]:
    """Yield the names of the files in a folder and in those below it, a hundred deep at most, but for hidden ones."""
    for here, folders, files in os.walk(folder):
        below = Path(here).relative_to(folder)
        is_deepest = len(below.parts) >= _MAX_DEPTH  # os.walk calls itself for every level before Python 3.12
        folders[:] = [] if is_deepest else sorted(name for name in folders if not is_hidden(name))
        yield from ((below / name).as_posix() for name in sorted(files) if not is_hidden(name))


class PathFinder:
    """Finds what the files of a data set name, in its folder only.

    A path is taken as it stands; then, as data sets are moved from where they were made, by its last parts: of
    `/content/set/images/a.jpg`, `images/a.jpg` or `a.jpg`. What tells the splits apart is never left off.

    Args:
        roots: absolute folders; the first is the data set's, the others may hold what is not there.
    """

    def __init__(self, *roots: Path) -> None:
        self._roots = {root: NamesWithin(root) for root in roots}
        self._num_moved = 0

    def notes(self) -> tuple[str, ...]:
        """Return a line for the user where paths were not taken as they stand."""
        if not self._num_moved:
            return ()
        return (f"paths that name nothing here, found by their last parts: {self._num_moved}",)

    def find(self, written: str, place: str) -> Path:
        """Return the folder or list that is meant, an absolute path.

        Args:
            written: relative to a root, or absolute; `\\` may stand for `/`.
            place: where it is written, for errors.

        Raises:
            DataError: it is not there (F19), or leads out of the roots (F31).
        """
        root, name = self._search(written, place, None)
        return root / name

    def find_image(self, written: str, place: str, folder: Path) -> Path:
        """Return the image that a line of a list in `folder` means; see `find`. No link may lead out, either.

        Raises:
            DataError: see `find`; or it is no image by its name (F36).
        """
        if not is_image(written):
            raise DataError(
                f"{written[:80]!r} is not the name of an image that is read",
                where=place,
                hint="a list has one image file a line; readable: " + ", ".join(SUFFIXES),
                code="F36",
            )
        root, name = self._search(written, place, folder)
        try:
            self._roots[root].require(name)
        except DataError as error:
            raise DataError(error.message, where=place, hint=error.hint, code=error.code) from error
        return root / name

    def _search(self, written: str, place: str, folder: Path | None) -> tuple[Path, str]:
        is_short = len(written) <= _MAX_LETTERS and len(re.findall(r"[/\\]", written)) <= _MAX_PARTS
        if "\0" not in written and is_short:
            for candidates in (_as_written, _by_last_parts):
                for root in self._roots:
                    for name, is_moved in candidates(written, root, folder or root):
                        if _exists(root / name):
                            self._num_moved += is_moved
                            return root, name
        raise self._not_found(written, place, folder)

    def _not_found(self, written: str, place: str, folder: Path | None) -> DataError:
        is_inside = any(next(_as_written(written, root, folder or root), None) for root in self._roots)
        if "\0" in written or PureWindowsPath(written).drive or not is_inside:
            return DataError(
                f"{written[:80]!r} leads out of {next(iter(self._roots))}, and nothing in it has this name",
                where=place,
                hint="write paths relative to the folder of the data set, and keep all of it in there",
                code="F31",
            )
        return DataError(
            f"{written[:80]!r} is not there", where=place, hint="correct the path, or remove it", code="F19"
        )


def _as_written(written: str, root: Path, folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield names below `root`: the path as seen from `folder` and from those between it and the root."""
    bases = [base for base in (folder, *folder.parents) if base.is_relative_to(root)] or [root]
    for spelling in _spellings(written):
        for base in bases:
            path = Path(os.path.normpath(base / spelling))
            if path.is_relative_to(root):
                yield path.relative_to(root).as_posix(), False


def _by_last_parts(written: str, root: Path, folder: Path) -> Iterator[tuple[str, bool]]:
    bases = {"", *([folder.relative_to(root).as_posix()] if folder.is_relative_to(root) else [])}
    for spelling in _spellings(written):
        parts = [part for part in PurePosixPath(spelling).parts if part not in ("/", "//", "..")]
        last_split = max((i for i, part in enumerate(parts[:-1]) if _SPLIT_FOLDER.fullmatch(part)), default=len(parts))
        for start in range(min(last_split + 1, len(parts))):
            for base in sorted(bases):
                yield PurePosixPath(base, *parts[start:]).as_posix(), start > 0


def _spellings(written: str) -> Sequence[str]:
    return list(dict.fromkeys((written, written.replace("\\", "/"))))


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):  # a name that is too long, or that this system cannot have
        return False
    return True


def read_list(file: Path, finder: PathFinder, log: FaultLog) -> list[Path]:
    """Return the images that a list names, one a line, in its order.

    Raises:
        DataError: the list cannot be read; or an image is not there, leads out, is none or is listed twice, unless
            such are dropped.
    """
    images: dict[Path, str] = {}
    faults = LineFaults()
    for line in read_lines(file):
        image = faults.attempt(lambda line: finder.find_image(line.text, line.place, file.parent), line)
        if image in images:
            faults.add(DataError(f"{line.text!r} is listed already at {images[image]}", where=line.place, code="F04"))
        elif image is not None:
            images[image] = line.place
    faults.tell(log)
    return list(images)

"""ZIP archives from anywhere, unpacked whole or not at all, and never outside their folder."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from core.annotations.staging import staged
from core.errors import DataError, MachineError, UsageError
from core.files import NamesWithin, write_atomic

MAX_BYTES = 1 << 40
"""What an archive may unpack to at most, by default."""
MAX_FILES = 1 << 22
MAX_RATIO = 200
"""How often larger than its archive the content may be; photographs and annotations stay far below."""
FREE_BYTES = 1 << 26
"""What may be unpacked at any ratio."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_PIECE = 1 << 20
_MAX_DEPTH = 100
"""Folders in folders; making, reading and removing a thousand is more than Python's functions can do."""
_ENCRYPTED = 0x1
_SEAL = ".unpacked-by-dedetr"
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError)
_BAD_NAME = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ)


def unpack_zip(
    archive: Path,
    target: Path,
    *,
    max_bytes: int = MAX_BYTES,
    wanted: Callable[[str], bool] | None = None,
    seal: str | None = None,
) -> int:
    """Unpack a ZIP archive to a folder that does not exist yet.

    All names are checked before the first byte is written, and a checksum after each file. The content grows in a
    folder beside `target`, which is renamed when all went well and else removed. Files get the permissions of new
    files; empty folders are left out.

    Args:
        archive: the file.
        target: the folder to make.
        max_bytes: what the wanted files may take at most.
        wanted: tells by its name (with `/`) whether a file is unpacked; by default all are.
        seal: what a hidden file in the folder says of where it comes from; by default there is none.

    Returns:
        The number of files.

    Raises:
        DataError: F37: no ZIP archive, damaged, encrypted, without wanted files, or a name in it is absolute, leads out
            of the folder, is used twice or is a link; F35: it unpacks to far too much; F19: it is missing.
        MachineError: `target` exists or cannot be written, or the disk is full.
    """
    if target.exists():
        raise MachineError(
            f"cannot unpack {archive.name}: a file or folder of this name exists",
            where=str(target),
            hint="move it away, or read it as it is",
        )
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _entries(archive, opened.infolist(), target)
            chosen = [(name, info) for name, info in entries if wanted is None or wanted(name)]
            if not chosen:
                raise _refused(
                    archive, "it holds no files" if wanted is None else "it holds none of the files looked for"
                )
            _require_moderate(archive, [info for _, info in chosen], max_bytes)
            _require_space(archive, target, sum(info.file_size for _, info in chosen))
            with staged(target) as stage:
                for name, info in chosen:
                    _unpack_file(archive, opened, info, stage / name)
                if seal is not None:
                    write_atomic(stage / _SEAL, seal)
    except FileNotFoundError:
        raise DataError("no such archive", where=str(archive), code="F19") from None
    except _DAMAGE as error:
        raise _refused(archive, f"not a ZIP archive, or damaged: {error}", "copy or download it again") from error
    except OSError as error:
        raise _refused(archive, f"cannot be read: {error.strerror or error}") from error
    return len(chosen)


def unpack_beside(archive: Path, folder: Path | None = None, *, wanted: Callable[[str], bool] | None = None) -> Path:
    """Unpack a ZIP archive to a lasting folder: beside it and of its name, without the suffix.

    Files that only macOS's Finder looks at are left out. A folder that was made of the same archive before is used
    again.

    Args:
        archive: the file.
        folder: where to make that folder instead.
        wanted: see `unpack_zip`.

    Returns:
        The folder.

    Raises:
        UsageError: the folder exists, and was not unpacked from this archive as it is now.
        DataError: as `unpack_zip`.
        MachineError: as `unpack_zip`.
    """
    target = (folder or archive.parent) / archive.stem
    try:
        seal = f"{archive.name}\n{archive.stat().st_size}\n{archive.stat().st_mtime_ns}\n"
    except OSError as error:
        raise DataError(f"cannot read the archive: {error.strerror}", where=str(archive), code="F19") from error
    if target.exists():
        if _read_seal(target / _SEAL) == seal:
            return target
        raise UsageError(
            f"{archive.name} would be unpacked to {target}, which exists",
            where=str(archive),
            hint=f"name {target} if that is the unpacked archive, or move it away",
        )
    unpack_zip(
        archive,
        target,
        wanted=lambda name: not _is_finders(name) and (wanted is None or wanted(name)),
        seal=seal,
    )
    return target


def content_folders(folder: Path) -> Iterator[Path]:
    """Yield a folder, then the one in it if it holds nothing else, and so on: archives are often packed so."""
    while True:
        yield folder
        inside = [path for path in folder.iterdir() if path.name != _SEAL]
        if len(inside) != 1 or not inside[0].is_dir():
            return
        folder = inside[0]


def _entries(archive: Path, infos: Sequence[zipfile.ZipInfo], target: Path) -> list[tuple[str, zipfile.ZipInfo]]:
    """Check what the archive lists, wanted or not, and return its files by name."""
    if len(infos) > MAX_FILES:
        raise _refused(archive, f"it lists {len(infos)} files, more than {MAX_FILES}", code="F35")
    names = NamesWithin(target)
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        # zipfile cuts names at a NUL byte, and some archivers of Windows write `\` between the parts.
        name = info.orig_filename.replace("\\", "/")
        try:
            names.require(name)
        except DataError as error:
            raise _refused(archive, f"the name {name!r} leads out of the folder that it is unpacked to") from error
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, f"{name!r} is a link or a device")
        if name.endswith("/") or kind == stat.S_IFDIR:
            continue
        if info.flag_bits & _ENCRYPTED:
            raise _refused(archive, f"{name!r} is encrypted", "unpack it yourself and name the folder")
        if info.compress_type not in _METHODS:
            # Of these zipfile unpacks a piece of any ratio at once, into memory.
            raise _refused(archive, f"{name!r} is packed by a method that is not read", "unpack it yourself")
        if name.count("/") > _MAX_DEPTH:
            raise _refused(archive, f"{name[:80]!r}... lies in more than {_MAX_DEPTH} folders", "unpack it yourself")
        name = PurePosixPath(name).as_posix()  # a//b and a/./b are a/b
        if name in entries:
            raise _refused(archive, f"the name {name!r} is used twice")
        entries[name] = info
    return list(entries.items())


def _require_moderate(archive: Path, infos: Sequence[zipfile.ZipInfo], max_bytes: int) -> None:
    """Refuse a bomb. What zipfile returns of a file is never longer than the archive says, so its word can be taken."""
    total = sum(info.file_size for info in infos)
    if total > max_bytes:
        raise _refused(archive, f"it unpacks to {total} bytes, more than {max_bytes}", code="F35")
    # Files may lie over each other in an archive, so that each alone looks harmless: the sum is held against its size.
    pairs = [(info.file_size, info.compress_size, repr(info.filename)) for info in infos]
    pairs.append((total, archive.stat().st_size, "it"))
    for unpacked, packed, what in pairs:
        if unpacked > max(FREE_BYTES, MAX_RATIO * packed):
            raise _refused(archive, f"{what} unpacks from {packed} to {unpacked} bytes", code="F35")


def _require_space(archive: Path, target: Path, num_bytes: int) -> None:
    existing = target.absolute().parent
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise MachineError(
            f"cannot unpack {archive.name}: it needs {num_bytes >> 20} MiB, and {free >> 20} MiB are free",
            where=str(target),
            hint="free some space on this disk",
        )


def _unpack_file(archive: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as packed, path.open("xb") as stream:
            while piece := packed.read(_PIECE):
                stream.write(piece)
            num_bytes = stream.tell()
    except OSError as error:
        if error.errno not in _BAD_NAME:
            raise
        raise _refused(archive, f"the name {info.filename!r} cannot be used: {os.strerror(error.errno)}") from error
    if num_bytes != info.file_size:
        raise _refused(archive, f"{info.filename!r} is cut off", "copy or download it again")


def _refused(archive: Path, reason: str, hint: str | None = None, *, code: str = "F37") -> DataError:
    hint = hint or "unpack it yourself if you trust it, and name the folder"
    return DataError(reason, where=str(archive), hint=hint, code=code)


def _read_seal(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _is_finders(name: str) -> bool:
    return name.startswith("__MACOSX/") or PurePosixPath(name).name == ".DS_Store"

"""COCO 2017 from its server or a mirror, in the layout that every command reads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from core.annotations.archives import unpack_zip
from core.annotations.download import OnBytes, fetch, require_free
from core.errors import DataError, UsageError, nearest
from core.files import machine_errors, require_writable_folder

COCO_URL = "http://images.cocodataset.org"  # its https has no certificate for this name; the checksums make up for that
COCO_URL_VARIABLE = "DEDETR_COCO_URL"
"""The variable that names a mirror, which has to hold the same files under the same paths."""


@dataclass(frozen=True)
class Archive:
    """A ZIP file of a data set.

    Attributes:
        path: where it is below a server's address.
        num_bytes: its length.
        sha256: its hash, 64 hexadecimal digits.
        holds: the files and folders that are taken out of it, by their names in it and below the data set's folder.
        num_bytes_unpacked: about how much room these take.
    """

    path: str
    num_bytes: int
    sha256: str
    holds: tuple[str, ...]
    num_bytes_unpacked: int


# COCO states no checksums. These are the ones that torchvision's own loader of COCO (torchvision/prototype/datasets)
# demands, and others measured.
COCO_2017: Mapping[str, Archive] = {
    "annotations": Archive(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
        500_000_000,
    ),
    "val": Archive(
        "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        ("val2017",),
        850_000_000,
    ),
    "train": Archive(
        "zips/train2017.zip",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        ("train2017",),
        19_800_000_000,
    ),
}


def fetch_coco(
    root: Path,
    base_url: str | None = None,
    what: Sequence[str] = ("annotations", "val", "train"),
    *,
    keep_archives: bool = False,
    archives: Mapping[str, Archive] = COCO_2017,
    on_bytes: OnBytes | None = None,
    on_note: Callable[[str], None] | None = None,
) -> None:
    """Fetch COCO 2017 into `root`: `annotations/instances_{train,val}2017.json` and `{train,val}2017/`.

    What is there already is not fetched again, and ZIP files that lie in `root` are used. All of it takes 39 GB while
    the training images are unpacked, and 21 GB afterwards.

    Args:
        root: the folder; made where it is missing.
        base_url: the server; by default what the variable `DEDETR_COCO_URL` says, else COCO's own.
        what: keys of `archives`.
        keep_archives: leave the ZIP files in `root`; those that lay there before stay in any case.
        archives: what there is to fetch.
        on_bytes: see `core.annotations.download.fetch`.
        on_note: is told what happens, a sentence at a time.

    Raises:
        UsageError: an argument cannot be used.
        DataError: see `fetch`; or an archive cannot be unpacked, or holds something else.
        MachineError: see `fetch`; or there is too little room.
    """
    say = on_note or (lambda _note: None)
    base = (base_url or os.environ.get(COCO_URL_VARIABLE) or COCO_URL).rstrip("/")
    for name in what:
        if name not in archives:
            raise UsageError(f"there is nothing called '{name}' to fetch", hint=nearest(name, archives))
    require_writable_folder(root)
    for archive in (archives[name] for name in what):
        missing = [part for part in archive.holds if not _is_there(root / part)]
        if not missing:
            say(f"{root} has {' and '.join(archive.holds)} already: not fetched")
            continue
        file = root / PurePosixPath(archive.path).name
        was_there = file.exists()
        _require_room(root, archive, file)
        url = f"{base}/{archive.path}"
        say(f"{file} is there already" if was_there else f"fetching {url} ({_mib(archive.num_bytes)})")
        fetch(url, file, sha256=archive.sha256, num_bytes=archive.num_bytes, on_bytes=on_bytes)
        say(f"unpacking {file.name}")
        _take_out(file, missing, root)
        if not keep_archives and not was_there:
            with machine_errors(file, "remove the archive"):
                file.unlink()


def _is_there(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def _require_room(root: Path, archive: Archive, file: Path) -> None:
    """Check that an archive and its content fit onto the disk together."""
    here = next((path.stat().st_size for path in (file, file.with_name(f"{file.name}.part")) if path.is_file()), 0)
    require_free(
        root, max(0, archive.num_bytes - here) + archive.num_bytes_unpacked, f"{file.name} and what is unpacked of it"
    )


def _take_out(file: Path, wanted: Sequence[str], root: Path) -> None:
    """Move files and folders of an archive to their places below `root`, when all of them are unpacked."""
    with machine_errors(root, "unpack the archive"), tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as name:
        content = Path(name) / "content"
        unpack_zip(
            file, content, wanted=lambda path: any(path == part or path.startswith(f"{part}/") for part in wanted)
        )
        for part in wanted:
            if not (content / part).exists():
                raise DataError(f"the archive does not hold {part}", where=str(file), code="F37")
        for part in wanted:
            (root / part).parent.mkdir(parents=True, exist_ok=True)
            (content / part).replace(root / part)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.0f} MiB"

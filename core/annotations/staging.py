"""The folder of a prepared data set: whether it may be replaced, and replaced whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.annotations.findings import NUM_EXAMPLES
from core.annotations.prepared import FILE_NAME, MADE_BY, read_dataset_file
from core.errors import DataError, MachineError, UsageError
from core.files import machine_errors


def require_replaceable(out: Path, source: Path | None) -> None:
    """Check that a folder may be made or replaced.

    Args:
        out: the folder.
        source: what is read; it must not be in `out`.

    Raises:
        UsageError: it holds something that `prepare-data` did not make, or the source.
        MachineError: it is a file.
    """
    target = out.resolve()
    if out.exists() and not out.is_dir():
        raise MachineError("cannot make the data set: a file of this name exists", where=str(out))
    if target == Path.cwd():
        raise UsageError("the data set cannot replace the current folder", where="--out", hint="name a folder in it")
    if source is not None and source.resolve().is_relative_to(target):
        raise UsageError(
            f"the source {source} is the output folder or in it", where="--out", hint="name another folder"
        )
    if not out.is_dir() or not any(out.iterdir()):
        return
    hint = "name another folder with --out, or move this one away"
    try:
        is_ours = read_dataset_file(out).made_by == MADE_BY
    except DataError:
        is_ours = False
    if not is_ours:
        raise UsageError("the folder is not empty, and `prepare-data` did not make it", where=str(out), hint=hint)
    foreign = sorted({path.name for path in out.iterdir()} - {FILE_NAME, "annotations", "images"})
    if foreign:
        raise UsageError(f"the folder also holds {', '.join(foreign[:NUM_EXAMPLES])}", where=str(out), hint=hint)


def require_new_folder(out: Path, source: Path | None) -> None:
    """Check that a folder is missing or empty, and may be made.

    Raises:
        UsageError: it is not empty, or lies around the source.
        MachineError: it is a file.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UsageError("the folder is not empty", where=str(out), hint="name another folder with --out")
    require_replaceable(out, source)


def replaced_notes(out: Path) -> list[str]:
    """Return a line for the user where subset files go with an earlier data set."""
    num_subsets = len(list((out / "annotations").glob("*.manifest.json")))
    return [f"subset files of the earlier data set in {out}, removed with it: {num_subsets}"] if num_subsets else []


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to write to, which takes its place when all went well and else disappears."""
    target = out.resolve()
    with machine_errors(out, "write the data set"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp") as holder:
            stage, earlier = Path(holder) / "new", Path(holder) / "earlier"
            stage.mkdir()
            yield stage
            if target.exists():
                target.replace(earlier)
            try:
                stage.replace(target)
            except BaseException:  # Ctrl-C too: the folder that holds the earlier data set is about to go
                if earlier.exists():
                    earlier.replace(target)
                raise

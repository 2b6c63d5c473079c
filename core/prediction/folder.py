"""A folder that predictions are written into, and what in it may be replaced."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from core.errors import DataError, UsageError
from core.files import join_within, machine_errors, write_json

MANIFEST_NAME = "manifest.json"
_KIND = "dedetr predictions"


class PredictionFolder:
    """Knows by a manifest which files an earlier prediction wrote, and lets nothing else be replaced.

    The manifest names files before they are written, so that those of a prediction that was stopped are known too.

    Args:
        root: the folder; it need not exist.

    Attributes:
        earlier: the files that an earlier prediction wrote.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        earlier = _read_manifest(root)
        self.earlier = frozenset(earlier or ())
        self._is_ours = earlier is not None
        self._claimed: set[Path] = set()

    def check(self, files: Iterable[Path], folders: Iterable[Path] = ()) -> None:
        """Check that files can be written, and files of any name into folders, without replacing somebody else's.

        Raises:
            UsageError: one would be replaced, or the folder holds other files and no manifest of a prediction.
        """
        if not self._is_ours and self.root.is_dir() and any(self.root.iterdir()):
            raise UsageError(
                "the folder holds other files, and dedetr replaces only predictions of its own",
                where=str(self.root),
                hint="name another folder with --out",
            )
        inside = (path for folder in folders for path in folder.rglob("*") if not path.is_dir())
        for path in (*files, *inside):
            if path not in self.earlier and (path.exists() or path.is_symlink()):
                raise UsageError(
                    "is not of an earlier prediction, and would be replaced or mixed with this one's files",
                    where=str(path),
                    hint="move it away, or name another folder with --out",
                )

    def claim(self, files: Iterable[Path]) -> None:
        """Name files that are about to be written.

        Raises:
            MachineError: the manifest cannot be written.
        """
        self._claimed.update(files)
        self._write_manifest(self.earlier | self._claimed)

    def finish(self, written: Iterable[Path]) -> None:
        """Remove what earlier predictions wrote and this one did not; name what it wrote.

        Raises:
            MachineError: a file cannot be removed, or the manifest not be written.
        """
        kept = set(written)
        for path in sorted((self.earlier | self._claimed) - kept):
            with machine_errors(path, "remove"):
                path.unlink(missing_ok=True)
                _remove_empty(path.parent, self.root)
        self._write_manifest(kept)

    def _write_manifest(self, files: Iterable[Path]) -> None:
        names = sorted(path.relative_to(self.root).as_posix() for path in files)
        write_json(self.root / MANIFEST_NAME, {"kind": _KIND, "files": names})


def _read_manifest(root: Path) -> list[Path] | None:
    """Return the files below `root` that its manifest names; None where there is none of ours."""
    try:
        content = json.loads((root / MANIFEST_NAME).read_bytes())
        names = [str(name) for name in content["files"]] if content["kind"] == _KIND else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if names is None:
        return None
    files = []
    for name in names:
        with contextlib.suppress(DataError):  # a name that leads elsewhere is none that we may touch
            files.append(join_within(root, name))
    return files


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent

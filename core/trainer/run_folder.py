"""A run's folder: made once, locked while it is used, found again by `latest`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
import yaml

from core.config.schema import Config
from core.errors import CheckpointError, MachineError, UsageError
from core.files import machine_errors, require_writable_folder, write_atomic, write_json
from core.trainer.pointers import point_to, pointed_to

if sys.platform != "win32":
    import fcntl

_LOCK = ".lock"
_WRITTEN_BY_A_RUN = (
    "config.yaml", "manifest.json", "metrics.jsonl", "metrics.csv", "checkpoints", "eval", "plots", "diverged",
    "tensorboard", "wandb",
)  # fmt: skip
_PACKAGES = ("dedetr", "torch", "torchvision", "numpy", "scipy", "pycocotools", "hotcoco", "pillow", "timm")


@dataclass(frozen=True)
class DatasetIdentity:
    """What tells a data set from another.

    Attributes:
        name: a short name for people.
        sha256: of its annotation files, by split.
    """

    name: str
    sha256: Mapping[str, str]


class RunFolder:
    """The folder that a run writes to: `config.yaml`, `manifest.json`, `metrics.jsonl`, `checkpoints/`, `eval/`.

    Made by `create` or `reopen`, and locked until it is closed.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @staticmethod
    def check_free(path: Path | None, *, overwrite: bool, runs_root: Path = Path("runs")) -> None:
        """Refuse a folder that `create` would refuse, before any work is done for it; nothing is made.

        Raises:
            UsageError: the folder is not empty.
            MachineError: it is a file, or cannot be read or written.
        """
        if path is None:
            require_writable_folder(runs_root)
            return
        with machine_errors(path, "look at the run folder"):
            path = pointed_to(path) or path
            is_file = path.exists() and not path.is_dir()
        if is_file:
            raise MachineError("is a file, not a folder", where=str(path), hint="name another folder with --out")
        if not overwrite:
            _refuse_unless_empty(path)
        require_writable_folder(path)

    @classmethod
    def create(
        cls, path: Path | None, model: str, *, runs_root: Path = Path("runs"), overwrite: bool = False
    ) -> RunFolder:
        """Make an empty run folder.

        Args:
            path: where; None for a new `MODEL-YYYYmmdd-HHMMSS` below `runs_root`.
            model: the model's name.
            runs_root: where `latest` is kept, and unnamed runs go.
            overwrite: remove what an earlier run wrote there; other files stay.

        Raises:
            UsageError: the folder is not empty.
            MachineError: it is a file, cannot be written, or another run is using it.
        """
        if path is None:
            path = _make_unnamed(runs_root, model)
            return cls(path, _take_lock(path))
        # Before the lock, so that nothing is written into a folder that is not ours.
        cls.check_free(path, overwrite=overwrite)
        path = pointed_to(path) or path
        with machine_errors(path, "make the run folder"):
            path.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(path)
        try:
            if overwrite:
                _remove_run(path)
            else:
                _refuse_unless_empty(path)
        except BaseException:
            lock.close()
            raise
        return cls(path, lock)

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open the folder of an earlier run, to go on with it.

        Raises:
            CheckpointError: there is no run.
            MachineError: another run is using it, or it cannot be written.
        """
        folder = pointed_to(path)
        if folder is None or not (folder / "config.yaml").is_file():
            raise CheckpointError("there is no run to resume", where=str(path), hint="name its folder with --out")
        return cls(folder, _take_lock(folder))

    @property
    def config_file(self) -> Path:
        """The run's configuration."""
        return self.path / "config.yaml"

    @property
    def manifest_file(self) -> Path:
        """Where the run came from."""
        return self.path / "manifest.json"

    @property
    def metrics_file(self) -> Path:
        """What happened, see `core.trainer.records`."""
        return self.path / "metrics.jsonl"

    @property
    def metrics_table(self) -> Path:
        """The evaluations among them as a table, see `core.trainer.metrics_table`."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """See `core.trainer.checkpoint`."""
        return self.path / "checkpoints"

    def describe(
        self,
        config: Config,
        dataset: DatasetIdentity,
        device: torch.device,
        command: Sequence[str],
        num_processes: int = 1,
    ) -> None:
        """Write `config.yaml`, and add this session to `manifest.json`.

        The manifest names what the numbers depend on besides the configuration: versions, device, thread count, data.

        Args:
            config: of the run.
            dataset: what is trained and evaluated on.
            device: where.
            command: the words of the command line.
            num_processes: that train together.

        Raises:
            MachineError: the folder cannot be written.
        """
        write_atomic(self.config_file, yaml.safe_dump(config.model_dump(), sort_keys=False))
        manifest = self.read_manifest() or {"run_id": uuid.uuid4().hex, "sessions": []}
        manifest |= {"seed": config.run.seed, "dataset": {"name": dataset.name, "sha256": dict(dataset.sha256)}}
        manifest["sessions"].append(
            {
                "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                "command": list(command),
                "versions": _versions(),
                "platform": platform.platform(),
                "device": str(device),
                "num_processes": num_processes,
                "num_threads": torch.get_num_threads(),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
            }
        )
        write_json(self.manifest_file, manifest)

    def read_manifest(self) -> dict[str, Any] | None:
        """Return the manifest, or None where there is none that can be read."""
        try:
            manifest = json.loads(self.manifest_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and isinstance(manifest.get("sessions"), list) else None

    def mark_latest(self, runs_root: Path = Path("runs")) -> None:
        """Let `latest` in `runs_root` point to this run.

        Raises:
            MachineError: the folder cannot be written, or something that is no pointer stands in its place.
        """
        with machine_errors(runs_root, "make the folder of runs"):
            runs_root.mkdir(parents=True, exist_ok=True)
        point_to(runs_root / "latest", self.path)

    def close(self) -> None:
        """Give up the lock."""
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_unnamed(runs_root: Path, model: str) -> Path:
    """Make a folder that did not exist, whatever the clock says and whoever else makes one now."""
    name = f"{model}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    with machine_errors(runs_root, "make the run folder"):
        runs_root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = runs_root / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
            else:
                return path


def _take_lock(path: Path) -> IO[str]:
    """Lock a run folder against other processes until the returned file is closed or this process dies."""
    with machine_errors(path, "write to the run folder"):
        stream = (path / _LOCK).open("a", encoding="utf-8")
        if sys.platform != "win32":
            try:
                # Not flock: data workers would inherit it, and keep it for a while after a run was killed.
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                stream.close()
                raise MachineError(
                    "another run is using this folder", where=str(path), hint="wait for it, or name another --out"
                ) from None
    return stream


def _refuse_unless_empty(path: Path) -> None:
    if not path.is_dir():
        return
    with machine_errors(path, "read the run folder"):
        found = sorted(entry.name for entry in path.iterdir() if entry.name != _LOCK)
    if found:
        raise UsageError(
            f"the run folder is not empty ({found[0]}{', ...' if len(found) > 1 else ''})",
            where=str(path),
            hint="name another --out, go on with --resume, or replace it with --overwrite",
        )


def _remove_run(path: Path) -> None:
    with machine_errors(path, "remove the earlier run"):
        for name in _WRITTEN_BY_A_RUN:
            entry = path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    installed = {found.name.lower(): found.version for found in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in _PACKAGES if name in installed}


def run_folder_of(weight_file: Path) -> Path | None:
    """Return the run folder that a checkpoint's weight file lies in, or None for a file of its own."""
    checkpoints = weight_file.resolve().parent.parent
    run = checkpoints.parent
    return run if checkpoints.name == "checkpoints" and (run / "config.yaml").is_file() else None

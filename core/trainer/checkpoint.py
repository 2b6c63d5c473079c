"""Checkpoints: folders that are whole or do not exist.

A checkpoint `step-00001200/` holds `model.pt` (all that prediction needs, see `core.models.weights`),
`training.pt` (all that only training needs) and `manifest.json`, which names the SHA-256 of both. It is written
beside its place, flushed to the disk, and renamed: what has no valid manifest is no checkpoint. Files hold tensors,
numbers, texts, lists and dictionaries alone, and are read without executing anything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.errors import CheckpointError, MachineError
from core.files import FULL_DISK, fsync_folder, machine_errors, sha256_of
from core.models.weight_files import read_weight_file
from core.models.weights import FORMAT, FORMAT_VERSION, LoadedWeights, read_weights
from core.trainer.pointers import point_to, pointed_to
from core.trainer.reporter import Reporter

MODEL_FILE = "model.pt"
TRAINING_FILE = "training.pt"
MANIFEST_FILE = "manifest.json"

_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = ".tmp"
_SET_ASIDE = ".old"
_DAMAGED = ".damaged"


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint, read.

    Attributes:
        folder: where it is.
        step: optimizer steps done when it was saved.
        weights: from `model.pt`.
        training: the content of `training.pt`, on the CPU.
    """

    folder: Path
    step: int
    weights: LoadedWeights
    training: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of a run: `step-*`, and the pointers `last` and `best`.

    Args:
        path: the folder; made with the first checkpoint.
        num_kept: how many of the newest stay; the best stays besides.
    """

    def __init__(self, path: Path, num_kept: int) -> None:
        self.path = path
        self.num_kept = num_kept

    @property
    def best(self) -> Path | None:
        """The best checkpoint's folder."""
        return pointed_to(self.path / "best")

    def save(
        self,
        step: int,
        model: Mapping[str, Any],
        training: Mapping[str, Any],
        *,
        is_best: bool,
        keep_earlier: bool = False,
    ) -> Path:
        """Write a checkpoint, set the pointers, remove the checkpoints that are no longer kept.

        Args:
            step: optimizer steps done; a checkpoint of the same step is replaced.
            model: content of `model.pt`.
            training: content of `training.pt`.
            is_best: whether `best` shall point to it.
            keep_earlier: remove none, as this one may not be better than those before.

        Returns:
            The checkpoint's folder.

        Raises:
            MachineError: the disk is full or may not be written; earlier checkpoints are as they were.
        """
        final = self._folder_of(step)
        unfinished = final.with_name(final.name + _UNFINISHED)
        with machine_errors(final, "save the checkpoint"):
            try:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
                _write_files(unfinished, {MODEL_FILE: dict(model), TRAINING_FILE: dict(training)}, step)
                _put_in_place(unfinished, final)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
        point_to(self.path / "last", final)
        if is_best:
            point_to(self.path / "best", final)
        if not keep_earlier:
            self._prune()
        return final

    def load_newest(self, reporter: Reporter) -> Checkpoint:
        """Read the newest checkpoint that is whole; warn of newer ones that are not, and rename them.

        Raises:
            CheckpointError: there is none, or it is of a newer version of dedetr.
            MachineError: a damaged one cannot be renamed.
        """
        damages: dict[Path, str] = {}
        for folder in reversed(self._folders()):
            damage = find_damage(folder)
            if damage is not None:
                damages[folder] = f"checkpoint {folder} is damaged ({damage})"
                continue
            checkpoint = _load(folder)
            if damages:
                reporter.warning(f"{'; '.join(damages.values())}: going on from step {checkpoint.step} instead")
                self._set_apart(damages)
            return checkpoint
        raise CheckpointError(
            "; ".join(damages.values()) or "there is no checkpoint to resume from",
            where=str(self.path),
            hint="start again with --overwrite, or in another folder",
        )

    def restore_pointers(self, step: int, best_step: int | None) -> None:
        """Point `last` and `best` to these steps: a save that was cut off may not have come to it.

        Raises:
            MachineError: the folder cannot be written.
        """
        for name, wanted in (("last", step), ("best", best_step)):
            if wanted is not None and self._folder_of(wanted).is_dir():
                point_to(self.path / name, self._folder_of(wanted))

    def clean(self) -> None:
        """Remove what an interrupted save left, and put back what it had set aside."""
        if not self.path.is_dir():
            return
        with machine_errors(self.path, "clean"):
            for leftover in sorted(self.path.glob(f"step-*{_SET_ASIDE}")):
                place = leftover.with_suffix("")
                if place.exists():
                    shutil.rmtree(leftover)
                else:
                    leftover.rename(place)
            for leftover in sorted(self.path.glob(f"*{_UNFINISHED}")):
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()

    def _folder_of(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _folders(self) -> list[Path]:
        """Return the checkpoint folders, the oldest step first."""
        if not self.path.is_dir():
            return []
        found = (entry for entry in self.path.iterdir() if _NAME.fullmatch(entry.name) and entry.is_dir())
        return sorted(found, key=_step_of)

    def _set_apart(self, folders: Iterable[Path]) -> None:
        """Rename damaged checkpoints, so that they count no longer."""
        for folder in folders:
            apart = folder.with_name(folder.name + _DAMAGED)
            with machine_errors(folder, "rename the damaged checkpoint"):
                if apart.exists():
                    shutil.rmtree(apart)
                folder.rename(apart)

    def _prune(self) -> None:
        best = self.best
        for folder in self._folders()[: -self.num_kept]:
            if best is not None and folder.name == best.name:
                continue
            doomed = folder.with_name(folder.name + _UNFINISHED)
            # A name that is ignored first: a folder that is half gone must not look like a damaged checkpoint.
            with machine_errors(folder, "remove the old checkpoint"):
                folder.rename(doomed)
                shutil.rmtree(doomed)


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None if all its files are as they were written."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        hashes: dict[str, str] = manifest["sha256"]
        if not {MODEL_FILE, TRAINING_FILE} <= hashes.keys():
            return f"{MANIFEST_FILE} is incomplete"
        for name, expected in hashes.items():
            if sha256_of(folder / name) != expected:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} cannot be read"
    return None


def find_model_file(path: Path) -> Path:
    """Return the weight file that a user's `--checkpoint` means.

    Args:
        path: a weight file, a checkpoint folder (or a pointer to one), or a run folder, of which the best
            checkpoint is taken, or else the last.

    Raises:
        CheckpointError: there is nothing of that kind.
    """
    if path.is_file() and pointed_to(path) is None:
        return path
    folder = pointed_to(path)
    if folder is None:
        raise CheckpointError("there is no such file or folder", where=str(path), hint="check the path")
    checkpoints = folder / "checkpoints"
    places = [folder, pointed_to(checkpoints / "best"), pointed_to(checkpoints / "last")]
    places += [pointed_to(folder / "best"), pointed_to(folder / "last")]
    for place in places:
        if place is not None and (place / MODEL_FILE).is_file():
            return place / MODEL_FILE
    raise CheckpointError("holds no checkpoint", where=str(path), hint="name a run folder, a checkpoint or a file")


def _write_files(folder: Path, contents: Mapping[str, Any], step: int) -> None:
    """Write the files of a checkpoint, the manifest last, and flush everything to the disk."""
    for name, content in contents.items():
        _write_tensors(folder / name, content)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": step,
        "sha256": {name: sha256_of(folder / name) for name in contents},
    }
    with (folder / MANIFEST_FILE).open("w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    fsync_folder(folder)


def _write_tensors(path: Path, content: Any) -> None:
    try:
        with path.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, RuntimeError) as error:
        # PyTorch turns the OSError of a full disk into a RuntimeError about its zip writer.
        raise _save_error(path, content, error) from error
    torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _save_error(path: Path, content: Any, error: Exception) -> MachineError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    reason = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(error).splitlines()[0]
    free = shutil.disk_usage(path.parent).free
    size = f"{_num_bytes(content)} bytes needed, {free} free"
    full = isinstance(cause, OSError) and cause.errno in FULL_DISK
    return MachineError(
        f"cannot save the checkpoint: {reason} ({size})",
        where=str(path.parent),
        hint="free some space on this disk, then go on with --resume"
        if full or _num_bytes(content) > free
        else "check the folder's permissions, then go on with --resume",
    )


def _num_bytes(content: Any) -> int:
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(_num_bytes(value) for value in content.values())
    return sum(_num_bytes(value) for value in content) if isinstance(content, (list, tuple)) else 0


def _put_in_place(unfinished: Path, final: Path) -> None:
    """Rename a finished folder; a checkpoint of the same name is set aside first, so that one of them stays."""
    aside = final.with_name(final.name + _SET_ASIDE)
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    unfinished.replace(final)
    fsync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _load(folder: Path) -> Checkpoint:
    weights = read_weights(folder / MODEL_FILE)
    training = read_weight_file(folder / TRAINING_FILE)
    if not isinstance(training, dict):
        raise CheckpointError("holds no state of training", where=str(folder / TRAINING_FILE))
    return Checkpoint(folder, _step_of(folder), weights, training)


def _step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder.name} is no checkpoint's name")
    return int(match[1])

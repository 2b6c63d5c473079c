"""The file of a step that came to numbers that are not finite: all that it takes to make it again."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.annotations.records import Category
from core.assembly import Assembly, described_by
from core.config.schema import Config
from core.datasets.batches import Batch
from core.datasets.transforms import Normalisation
from core.errors import CheckpointError
from core.files import write_atomic
from core.losses.criterion import Normalisers
from core.models.weight_files import read_weight_file
from core.models.weights import FORMAT, LoadedWeights, pack_weights, unpack_weights
from core.structures import Target
from core.trainer.parts import Part

_SECTION = "diverged_step"
_HINT = "name what training left in the folder diverged/ of a run"


@dataclass(frozen=True)
class KeptPart:
    """A part of a step, as a file keeps it.

    Attributes:
        batch: images, and labels as annotated.
        place: see `core.trainer.parts.Part`.
        losses: its loss and terms by name; empty where it did not come to them.
    """

    batch: Batch
    place: int
    losses: Mapping[str, float]


@dataclass(frozen=True)
class DivergedStep:
    """A step that could not be made.

    Attributes:
        weights: of the model before the step.
        config: of the run.
        classes: by label.
        parts: those to blame or, where it could not be told which, all of the process that wrote the file.
        normalisers: of the whole step.
        precision: state of `MixedPrecision`.
        step: optimizer steps done before.
        epoch: epochs done before.
        reason: what was not finite.
        rank: of the process that wrote the file.
        world_size: number of processes.
        device: the kind that computed: cpu, cuda or mps.
        num_threads: of the process, on its CPU.
    """

    weights: LoadedWeights
    config: Config
    classes: tuple[Category, ...]
    parts: tuple[KeptPart, ...]
    normalisers: Normalisers
    precision: Mapping[str, Any]
    step: int
    epoch: int
    reason: str
    rank: int
    world_size: int
    device: str
    num_threads: int


def write_diverged_step(
    path: Path,
    assembly: Assembly,
    parts: Sequence[Part],
    losses: Sequence[Mapping[str, float]],
    normalisers: Normalisers,
    **numbers: Any,
) -> None:
    """Write a step's file, whole or not at all; `torch.load(weights_only=True)` reads it.

    Args:
        path: missing folders are made.
        assembly: its model is as it was before the step.
        parts: to keep.
        losses: of these parts, as far as they are known.
        normalisers: of the whole step.
        numbers: the other fields of `DivergedStep`, plain values.

    Raises:
        MachineError: the file cannot be written.
    """
    content = pack_weights(assembly.model.state_dict(), assembly.config.model_dump(), assembly.classes)
    known = [*losses, *({} for _ in parts[len(losses) :])]
    content[_SECTION] = {
        "parts": [_pack_part(part, dict(row)) for part, row in zip(parts, known, strict=True)],
        "normalisers": [normalisers.num_boxes, normalisers.num_matched, normalisers.num_unmatched],
        "device": next(assembly.model.parameters()).device.type,
        "num_threads": torch.get_num_threads(),
        **numbers,
    }
    # Into memory first: of a disk that is full PyTorch would only say that its writer failed.
    packed = io.BytesIO()
    torch.save(content, packed)
    write_atomic(path, packed.getvalue())


def read_diverged_step(path: Path) -> DivergedStep:
    """Read a step's file without running anything in it.

    Raises:
        CheckpointError: the file is missing, damaged, of another format version, or of another kind.
    """
    try:
        content = read_weight_file(path)
        _require_whole(path)
    except CheckpointError as error:
        error.hint = _HINT
        raise
    if not isinstance(content, Mapping) or content.get("format") != FORMAT or _SECTION not in content:
        raise CheckpointError("is a file of weights, and holds no step to make again", where=str(path), hint=_HINT)
    weights = unpack_weights(content, path)
    config, classes = described_by(weights)
    try:
        return _unpack(content[_SECTION], weights, config, classes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"is damaged: {error!r}", where=str(path), hint=_HINT) from error


def _require_whole(path: Path) -> None:
    """Check the sums in a file that could be read: PyTorch leaves them be, and other bits give other numbers."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"is damaged: {error}", where=str(path)) from error
    if damaged is not None:
        raise CheckpointError(f"is damaged: {damaged} is not what was written", where=str(path))


def _pack_part(part: Part, losses: dict[str, float]) -> dict[str, Any]:
    batch = part.batch
    return {
        "place": part.place,
        "losses": losses,
        "pixels": batch.pixels.cpu(),
        "sizes_hw": [list(size) for size in batch.sizes_hw],
        "normalisation": [list(values) for values in batch.normalisation],
        # Cloned, as what is a view would be written with all that it is a view of.
        "boxes_cxcywh_norm": [target.boxes_cxcywh_norm.cpu().clone() for target in batch.targets],
        "labels": [target.labels.cpu().clone() for target in batch.targets],
        "image_ids": list(batch.image_ids),
        "file_names": list(batch.file_names),
        "original_sizes_hw": batch.original_sizes_hw.tolist(),
    }


def _unpack(
    section: Mapping[str, Any], weights: LoadedWeights, config: Config, classes: tuple[Category, ...]
) -> DivergedStep:
    return DivergedStep(
        weights=weights,
        config=config,
        classes=classes,
        parts=tuple(map(_unpack_part, section["parts"])),
        normalisers=Normalisers(*(int(count) for count in section["normalisers"])),
        precision=dict(section["precision"]),
        step=int(section["step"]),
        epoch=int(section["epoch"]),
        reason=str(section["reason"]),
        rank=int(section["rank"]),
        world_size=int(section["world_size"]),
        device=str(section["device"]),
        num_threads=int(section["num_threads"]),
    )


def _unpack_part(kept: Mapping[str, Any]) -> KeptPart:
    mean, std = (tuple(map(float, values)) for values in kept["normalisation"])
    boxes, labels = kept["boxes_cxcywh_norm"], kept["labels"]
    batch = Batch(
        pixels=kept["pixels"],
        sizes_hw=tuple((int(height), int(width)) for height, width in kept["sizes_hw"]),
        normalisation=Normalisation(mean, std),
        targets=tuple(Target(*each) for each in zip(boxes, labels, strict=True)),
        image_ids=tuple(int(each) for each in kept["image_ids"]),
        original_sizes_hw=torch.tensor(kept["original_sizes_hw"]),
        file_names=tuple(map(str, kept["file_names"])),
    )
    counts = {len(each) for each in (batch.pixels, batch.sizes_hw, batch.targets, batch.file_names)}
    if counts != {len(batch)} or batch.pixels.dtype != torch.uint8 or batch.pixels.ndim != 4:
        raise ValueError("images and labels do not belong together")
    return KeptPart(batch, int(kept["place"]), {str(name): float(value) for name, value in kept["losses"].items()})

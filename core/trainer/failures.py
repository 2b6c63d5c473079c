"""Failures in the middle of a step: what they mean for the user, and what is kept to look into them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from core.config.schema import DataConfig
from core.datasets.batches import Batch
from core.errors import DivergedError, MachineError
from core.files import machine_errors


@contextmanager
def out_of_memory_errors(data: DataConfig) -> Iterator[None]:
    """Turn an allocation that failed, on the device or the host, into a `MachineError` that says what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        is_certain = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_certain and "out of memory" not in text and "can't allocate memory" not in text:
            raise
        reason = text.splitlines()[0] if text else "the host has none left"
        raise MachineError(
            f"out of memory: {reason}",
            where=f"data.batch_size {data.batch_size}, data.short_side {data.short_side}",
            hint="make data.batch_size smaller (--batch-size), or data.short_side (--short-side)",
        ) from error


def non_finite_terms(loss: float, terms: Mapping[str, float]) -> list[str]:
    """Return which loss is not a finite number: the terms that are not, or the total; empty if it is finite."""
    if math.isfinite(loss):
        return []
    found = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
    return found or [f"the total is {loss}"]


def diverged(
    reason: str, *, step: int, batch: Batch, model: torch.nn.Module, folder: Path, rank: int = 0
) -> DivergedError:
    """Return the error of a run whose numbers are no longer finite; keep batch and weights to replay the step.

    Args:
        reason: what is not finite.
        step: number of the step that was not made, from 1.
        batch: what the model saw.
        model: as it was before the step.
        folder: `step-N.pt` (with the rank behind it, unless 0) is written there, readable by
            `torch.load(weights_only=True)`.
        rank: of this process.
    """
    path = folder / (f"step-{step:08d}.pt" if rank == 0 else f"step-{step:08d}-rank-{rank}.pt")
    images = batch.images
    content: dict[str, Any] = {
        "model": model.state_dict(),
        "image_ids": list(batch.image_ids),
        "pixels": images.pixels,
        "padding_mask": images.padding_mask,
        "sizes_hw": images.sizes_hw,
        "boxes_cxcywh_norm": [target.boxes_cxcywh_norm for target in batch.targets],
        "labels": [target.labels for target in batch.targets],
    }
    kept = f"the batch is kept in {path}"
    try:
        with machine_errors(path, "keep the batch"):
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(content, path)
    except (MachineError, RuntimeError) as error:
        kept = f"the batch could not be kept: {error}"
    shown = ", ".join(map(str, batch.image_ids[:8])) + (", ..." if len(batch.image_ids) > 8 else "")
    return DivergedError(
        f"{reason} at step {step} (image ids {shown}); the weights were not updated, {kept}",
        where="loss",
        hint="lower optimizer.lr, and look at the annotations of these images; checkpoints are as they were",
    )

"""Failures in the middle of a step: what they mean for the user, and what is kept to look into them."""

from __future__ import annotations

import errno
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from core.assembly import Assembly
from core.config.schema import DataConfig
from core.errors import DivergedError, MachineError, UsageError
from core.losses.criterion import Normalisers
from core.processes import Processes
from core.trainer.diverged import write_diverged_step
from core.trainer.parts import Part
from core.trainer.precision import MixedPrecision

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")


@contextmanager
def out_of_memory_errors(data: DataConfig) -> Iterator[None]:
    """Turn an allocation that failed, on the device or the host, into a `MachineError` that says what helps."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        lines = str(error).splitlines()
        telling = [line for line in lines if any(words in line for words in _NO_MEMORY)]
        is_certain = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
            isinstance(error, OSError) and error.errno == errno.ENOMEM
        )
        if not is_certain and not telling:
            raise
        reason = (telling or lines or ["the host has none left"])[0]
        raise MachineError(
            f"out of memory: {reason}",
            where=f"data.batch_size {data.batch_size}, data.short_side {data.short_side}",
            hint="take a batch in parts (--accumulate), or make it (--batch-size) or the images (--short-side) smaller",
        ) from error


@contextmanager
def batch_norm_errors() -> Iterator[None]:
    """Turn PyTorch's refusal to normalise a single number by itself into a `UsageError` that says what helps."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            "a part of a batch is so small that batch norm has a single value in a channel to train on",
            where="backbone.norm",
            hint="use a larger --batch-size or --short-side, less --accumulate, or backbone.norm=group_norm",
        ) from error


def non_finite_terms(loss: float, terms: Mapping[str, float]) -> list[str]:
    """Return which loss is not a finite number: the terms that are not, or the total; empty if it is finite."""
    if math.isfinite(loss):
        return []
    found = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
    return found or [f"the total is {loss}"]


def diverged(
    reason: str,
    *,
    assembly: Assembly,
    parts: Sequence[Part],
    losses: Sequence[Mapping[str, float]] = (),
    normalisers: Normalisers,
    precision: MixedPrecision,
    step: int,
    epoch: int,
    folder: Path,
    processes: Processes,
    parameters: Sequence[str] = (),
) -> DivergedError:
    """Return the error of a run whose numbers are no longer finite; keep all that it takes to make the step again.

    Args:
        reason: what is not finite.
        assembly: its model is as it was before the step.
        parts: those to blame, or all of this process.
        losses: loss and terms of these parts, as far as they are known.
        normalisers: of the whole step.
        precision: of the step.
        step: optimizer steps done before.
        epoch: epochs done before.
        folder: `step-N.pt` (with the rank behind it, unless 0) is written there, see `core.trainer.diverged`.
        processes: that share the step.
        parameters: whose gradients are not finite, where it is them.
    """
    if parameters:
        others = f" and {len(parameters) - 1} more" if len(parameters) > 1 else ""
        reason = f"{reason} ({parameters[0]}{others})"
    rank = processes.rank
    path = folder / (f"step-{step + 1:08d}.pt" if rank == 0 else f"step-{step + 1:08d}-rank-{rank}.pt")
    kept = f"the step is kept in {path}"
    hint = f"`dedetr train --replay {shlex.quote(str(path))}` makes it again and tells what breaks"
    try:
        write_diverged_step(
            path,
            assembly,
            parts,
            losses,
            normalisers,
            precision=precision.state_dict(),
            step=step,
            epoch=epoch,
            reason=reason,
            rank=rank,
            world_size=processes.world_size,
        )
    except (MachineError, MemoryError, RuntimeError) as error:
        kept = f"the step could not be kept: {str(error) or type(error).__name__}"
        hint = "lower optimizer.lr, and look at the annotations of these images"
    image_ids = [image_id for part in parts for image_id in part.batch.image_ids]
    shown = ", ".join(map(str, image_ids[:8])) + (", ..." if len(image_ids) > 8 else "")
    return DivergedError(
        f"{reason} at step {step + 1} (image ids {shown}); the weights were not updated, {kept}",
        where="loss",
        hint=hint,
    )

"""Reading weight files without running what is in them, and checking that they fit."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from core.errors import CheckpointError

_MAX_NAMES_SHOWN = 6


def read_weight_file(path: Path, *, trust: bool = False, can_trust: bool = False) -> Any:
    """Return what a file of weights holds, its tensors on the CPU.

    Args:
        path: `.safetensors`, or what `torch.save` wrote.
        trust: unpickle any object, which can run any code; otherwise tensors, plain Python values and
            `argparse.Namespace` (which the reference's checkpoints hold) are all that is accepted.
        can_trust: whether the user has a flag for `trust`, which the hint then names.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise CheckpointError("there is no such weight file", where=str(path), hint="check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "refused, as it is damaged or holds more than tensors and plain values: " + _reason(error),
            where=str(path),
            hint="pass --trust-checkpoint only if you trust its origin: it lets the file run any code"
            if can_trust
            else "fetch it again, or convert it to .safetensors where you trust it",
        ) from error
    except Exception as error:  # A damaged file can fail in any way.
        raise CheckpointError(
            f"is no file of weights, or is damaged ({type(error).__name__})",
            where=str(path),
            hint="name a run folder, a checkpoint, a .pth or a .safetensors file",
        ) from error


def _reason(error: Exception) -> str:
    """Return the telling line of an error: torch puts its advice to programmers around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (telling or lines or [type(error).__name__])[0][:200]


def find_state(content: Any, where: Path) -> dict[str, Tensor]:
    """Return the state dict in a file's content: the content itself, or below `model` or `state_dict`.

    Raises:
        CheckpointError: there is none.
    """
    if isinstance(content, Mapping):
        for candidate in (content.get("model"), content.get("state_dict"), content):
            if isinstance(candidate, Mapping) and candidate and _is_state(candidate):
                return dict(candidate)
    raise CheckpointError("holds no state dict of tensors", where=str(where), hint="give a file of model weights")


def _is_state(candidate: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in candidate.items())


@dataclass(frozen=True)
class PartReport:
    """How a part of a model was loaded.

    Attributes:
        name: how the part's keys begin.
        num_loaded: tensors loaded as they are.
        num_adapted: tensors that were cut, extended or put together anew.
        taken: what of those is from the file, in words; None where nothing was adapted.
        fresh: what of those is as initialised, in words; None where nothing is.
    """

    name: str
    num_loaded: int
    num_adapted: int
    taken: str | None
    fresh: str | None


@dataclass(frozen=True)
class LoadReport:
    """How a state fits a module.

    Attributes:
        loaded: keys that fit.
        missing: keys of the module that the state lacks.
        unexpected: keys of the state that the module lacks.
        mismatched: keys of both, with the shape in the state and in the module.
        kept_classes: names whose class-head rows were taken over; empty where the whole head was.
        fresh_classes: names whose class-head rows start anew.
        parts: of a detector, in its order; empty for other modules.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    kept_classes: tuple[str, ...] = ()
    fresh_classes: tuple[str, ...] = ()
    parts: tuple[PartReport, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every key found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def describe(self) -> str:
        """Name the keys that do not fit, group by group."""
        shapes = [
            f"{key} (file {list(given)}, model {list(wanted)})"
            for key, (given, wanted) in (self.mismatched or {}).items()
        ]
        groups = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": shapes}
        return "; ".join(f"{len(keys)} {name}: {shorten(keys)}" for name, keys in groups.items() if keys)


def shorten(names: Sequence[str]) -> str:
    """Join names by commas, the first few alone where they are many."""
    shown = ", ".join(names[:_MAX_NAMES_SHOWN])
    return shown if len(names) <= _MAX_NAMES_SHOWN else f"{shown}, and {len(names) - _MAX_NAMES_SHOWN} more"


def compare_state(module: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Compare a state with what a module wants.

    The counters of batch norm are of no use to us, and absent from many files: they are never missed.
    """
    wanted = module.state_dict()
    mismatched = {
        key: (tuple(state[key].shape), tuple(wanted[key].shape))
        for key in state
        if key in wanted and state[key].shape != wanted[key].shape
    }
    return LoadReport(
        loaded=tuple(key for key in wanted if key in state and key not in mismatched),
        missing=tuple(key for key in wanted if key not in state and not key.endswith("num_batches_tracked")),
        unexpected=tuple(key for key in state if key not in wanted and not key.endswith("num_batches_tracked")),
        mismatched=mismatched,
    )


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], where: str, hint: str | None = None) -> LoadReport:
    """Load a state that fits in every key and shape.

    Raises:
        CheckpointError: it does not fit; the keys are named.
    """
    report = compare_state(module, state)
    if not report.fits:
        raise CheckpointError(f"the weights do not fit the model: {report.describe()}", where=where, hint=hint)
    module.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    return report

"""Detector weights: ours and the reference's, read without running anything, loaded whole or refused."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from core.annotations.records import Category
from core.errors import CheckpointError
from core.models.adaptation import CLASS_HEADS, QUERIES, Adaptation, adapt, differs_in_rows_alone, part_reports
from core.models.detector import Detector
from core.models.reference_keys import (
    from_reference_state,
    is_reference_state,
    reference_classes,
    reference_num_classes,
    share_heads,
)
from core.models.weight_files import LoadReport, compare_state, find_state, load_exactly, read_weight_file

FORMAT = "dedetr"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LoadedWeights:
    """What stands in a file of detector weights.

    Attributes:
        path: of the file.
        state: tensors by key; the reference's own keys if `is_reference`.
        classes: by label, or None where the file does not say.
        config: of the training run, as plain values, or None where the file does not say.
        is_reference: whether the reference wrote it.
        reference_args: the reference's training flags, empty where the file has none.
    """

    path: Path
    state: Mapping[str, Tensor]
    classes: tuple[Category, ...] | None
    config: Mapping[str, Any] | None
    is_reference: bool
    reference_args: Mapping[str, Any]


def pack_weights(state: Mapping[str, Tensor], config: Mapping[str, Any], classes: Sequence[Category]) -> dict[str, Any]:
    """Return the content of our own weight file (`model.pt`): tensors and plain values, nothing else.

    Args:
        state: the detector's state dict.
        config: of the training run, as plain values.
        classes: by label.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "made_by": importlib.metadata.version("dedetr"),
        "model": {key: tensor.detach().cpu() for key, tensor in state.items()},
        "config": dict(config),
        "classes": [{"id": category.id, "name": category.name} for category in classes],
    }


def read_weights(path: Path, trust: bool = False) -> LoadedWeights:
    """Read our own `model.pt`, a checkpoint of the reference, or a bare state dict (.pth, .safetensors).

    Args:
        path: the file.
        trust: unpickle anything, which can run any code. Never done unasked, nor tried when reading fails.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, of a newer format, or holds no weights.
    """
    content = read_weight_file(path, trust=trust, can_trust=True)
    if isinstance(content, Mapping) and content.get("format") == FORMAT:
        return unpack_weights(content, path)
    state = find_state(content, path)
    args = content.get("args") if isinstance(content, Mapping) else None
    return LoadedWeights(
        path=path,
        state=state,
        classes=None,
        config=None,
        is_reference=is_reference_state(state),
        reference_args=dict(vars(args)) if isinstance(args, argparse.Namespace) else {},
    )


def unpack_weights(content: Mapping[str, Any], path: Path) -> LoadedWeights:
    """Return what `pack_weights` has packed.

    Args:
        content: of a file of our format.
        path: of the file.

    Raises:
        CheckpointError: it is of another format version, or damaged.
    """
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"was made by dedetr {content.get('made_by', '(unknown)')} in format {version}; this is dedetr "
            f"{importlib.metadata.version('dedetr')}, which reads format {FORMAT_VERSION}",
            where=str(path),
            hint="install the dedetr that made it",
        )
    try:
        classes = tuple(Category(int(entry["id"]), str(entry["name"])) for entry in content["classes"])
        config = dict(content["config"])
        state = find_state(content["model"], path)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"is damaged: {error!r}", where=str(path), hint="save the file again") from error
    _check_head(state, len(classes), path)
    return LoadedWeights(
        path=path,
        state=state,
        classes=classes,
        config=config,
        is_reference=False,
        reference_args={},
    )


def _check_head(state: Mapping[str, Tensor], num_classes: int, path: Path) -> None:
    for key, tensor in state.items():
        # With "no object" there is one row more.
        if key.startswith(CLASS_HEADS) and tuple(tensor.shape[:1]) not in ((num_classes,), (num_classes + 1,)):
            message = f"is damaged: it names {num_classes} classes, but the shape of '{key}' is {list(tensor.shape)}"
            raise CheckpointError(message, where=str(path), hint="save the file again")


def load_into(detector: Detector, weights: LoadedWeights, class_names: Sequence[str] | None = None) -> LoadReport:
    """Load weights into a detector.

    Args:
        detector: of the architecture that the weights are of.
        weights: from `read_weights`.
        class_names: of the detector by label, to fine-tune: queries and class heads are adapted to it, see
            `core.models.adaptation.adapt`. None loads everything as it is.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; all are named.
    """
    state = dict(weights.state)
    if weights.is_reference:
        state = from_reference_state(state)
        if not detector.decoder.refines_boxes:
            state = share_heads(state)
    adaptation = Adaptation(state)
    if class_names is not None:
        adaptation = adapt(detector, state, _known_names(detector, weights), class_names)
    hint = _hint_of(detector, adaptation.state)
    report = load_exactly(detector, adaptation.state, where=str(weights.path), hint=hint)
    return replace(
        report,
        kept_classes=adaptation.kept_classes,
        fresh_classes=adaptation.fresh_classes,
        parts=part_reports(report.loaded, adaptation.changes),
    )


def _known_names(detector: Detector, weights: LoadedWeights) -> list[str]:
    """Return the names of the weights' classes by label; none where the file does not say."""
    known = weights.classes
    if weights.is_reference:
        known = reference_classes(reference_num_classes(weights.state, detector.spec.family))
    return [category.name for category in known or ()]


def _hint_of(detector: Detector, state: Mapping[str, Tensor]) -> str | None:
    mismatched = compare_state(detector, state).mismatched or {}
    wanted = detector.state_dict()
    other_rows = [key for key in mismatched if differs_in_rows_alone(state[key], wanted[key])]
    if any(key.startswith(CLASS_HEADS) for key in other_rows):
        return "the weights are for another number of classes; train from them by --weights, which adapts the head"
    if QUERIES in other_rows:
        return f"set model.num_queries={len(state[QUERIES])}"
    return "build the model that the weights were trained with (--model, model.*, backbone.name)"

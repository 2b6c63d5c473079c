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
from core.models.detector import Detector
from core.models.reference_keys import (
    from_reference_state,
    is_reference_state,
    reference_classes,
    reference_num_classes,
    share_heads,
)
from core.models.specs import DecoderFamily
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
        return _read_ours(content, path)
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


def _read_ours(content: Mapping[str, Any], path: Path) -> LoadedWeights:
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
        state = content["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"is damaged: {error!r}", where=str(path), hint="save the file again") from error
    return LoadedWeights(
        path=path,
        state=find_state(state, path),
        classes=classes,
        config=config,
        is_reference=False,
        reference_args={},
    )


def load_into(detector: Detector, weights: LoadedWeights, class_names: Sequence[str] | None = None) -> LoadReport:
    """Load weights into a detector.

    Args:
        detector: of the architecture that the weights are of.
        weights: from `read_weights`.
        class_names: of the detector, to fine-tune on other classes than the weights know: their class head's
            rows go to the classes of equal name, and the other classes keep the rows that they have. None
            loads the head as it is.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; all are named.
    """
    state = dict(weights.state)
    if weights.is_reference:
        state = from_reference_state(state)
        if not detector.decoder.refines_boxes:
            state = share_heads(state)
    kept: list[str] = []
    if class_names is not None:
        known = weights.classes
        if weights.is_reference:
            known = reference_classes(reference_num_classes(weights.state, detector.spec.family))
        state, kept = _fit_class_head(detector, state, known, class_names)
    report = load_exactly(detector, state, where=str(weights.path), hint=_hint_of(detector, state))
    fresh = [name for name in class_names or () if name not in kept]
    return replace(report, kept_classes=tuple(kept), fresh_classes=tuple(fresh))


def _fit_class_head(
    detector: Detector, state: Mapping[str, Tensor], known: Sequence[Category] | None, class_names: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state with a class head for `class_names`, and the names whose rows it brings along."""
    rows = {category.name: row for row, category in enumerate(known or ())}
    kept = [name for name in class_names if name in rows]
    fitted = dict(state)
    for key, present in detector.state_dict().items():
        given = state.get(key)
        if not key.startswith("decoder.class_embed.") or given is None or given.shape[1:] != present.shape[1:]:
            continue
        head = present.clone()
        for row, name in enumerate(class_names):
            if name in rows:
                head[row] = given[rows[name]]
        if detector.spec.family is DecoderFamily.DETR:
            head[-1] = given[-1]  # "no object"
        fitted[key] = head
    return fitted, kept


def _hint_of(detector: Detector, state: Mapping[str, Tensor]) -> str | None:
    mismatched = compare_state(detector, state).mismatched or {}
    if any(key.startswith("decoder.class_embed.") for key in mismatched):
        return "the weights are for another number of classes; train from them by --weights, which adapts the head"
    if "query_embed.weight" in mismatched:
        return f"set model.num_queries={len(state['query_embed.weight'])}"
    return "build the model that the weights were trained with (--model, model.*, backbone.name)"

"""Fitting a detector's weights to a detector with other classes or another number of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.models.detector import Detector
from core.models.specs import DecoderFamily
from core.models.weight_files import PartReport, shorten

QUERIES = "query_embed.weight"
CLASS_HEADS = "decoder.class_embed."


@dataclass(frozen=True)
class Change:
    """What became of a tensor, in words.

    Attributes:
        taken: what of it is from the file.
        fresh: what of it is as initialised; None where nothing is.
    """

    taken: str
    fresh: str | None


@dataclass(frozen=True)
class Adaptation:
    """A state that was made to fit a detector.

    Attributes:
        state: tensors by key.
        changes: of the tensors that are not as they were, by key.
        kept_classes: names whose class-head rows are from the file.
        fresh_classes: names whose class-head rows are the detector's own.
    """

    state: Mapping[str, Tensor]
    changes: Mapping[str, Change] = field(default_factory=dict)
    kept_classes: tuple[str, ...] = ()
    fresh_classes: tuple[str, ...] = ()


def adapt(
    detector: Detector, state: Mapping[str, Tensor], known_names: Sequence[str], class_names: Sequence[str]
) -> Adaptation:
    """Fit queries and class heads to a detector; all else stays, whether it fits or not.

    The first queries are the file's, as many as there are. Rows of a class head go to the classes of equal name, and
    the row of "no object" to "no object". What the file has nothing for stays as it is in the detector.

    Args:
        detector: as initialised.
        state: another detector's, under our keys.
        known_names: of its classes by label; none where they are not known.
        class_names: of the detector's classes by label.
    """
    same_classes = list(known_names) == list(class_names)
    kept = tuple(name for name in class_names if name in known_names)
    fresh = tuple(name for name in class_names if name not in known_names)
    is_softmax = detector.spec.family is DecoderFamily.DETR
    taken = f"{len(kept)} of {len(class_names)} classes" + (', "no object"' if is_softmax else "")
    class_change = Change(taken, shorten(fresh) or None)
    adapted = dict(state)
    changes: dict[str, Change] = {}
    for key, initial in detector.state_dict().items():
        given = state.get(key)
        if given is None or not differs_in_rows_alone(given, initial):
            continue
        if key == QUERIES and len(given) != len(initial):
            adapted[key], changes[key] = _fit_queries(given, initial)
        elif key.startswith(CLASS_HEADS) and not same_classes:
            if known_names and len(given) != len(known_names) + is_softmax:
                continue  # The other decoder's head: what else does not fit is yet to be said.
            adapted[key] = _fit_class_rows(given, initial, known_names, class_names, is_softmax=is_softmax)
            changes[key] = class_change
    return Adaptation(adapted, changes, kept, fresh)


def differs_in_rows_alone(given: Tensor, initial: Tensor) -> bool:
    """Return whether two tensors are of one shape but for the number of their rows, which may be equal too."""
    return given.dim() == initial.dim() > 0 and given.shape[1:] == initial.shape[1:]


def part_reports(loaded: Sequence[str], changes: Mapping[str, Change]) -> tuple[PartReport, ...]:
    """Count loaded keys by the part of the detector that they are of, in its own order.

    Args:
        loaded: keys of the detector.
        changes: of the keys that were adapted.
    """
    keys_of: dict[str, list[str]] = {}
    for key in loaded:
        keys_of.setdefault(_part_of(key), []).append(key)
    parts = []
    for name, keys in keys_of.items():
        adapted = [changes[key] for key in keys if key in changes]
        taken, fresh = (adapted[0].taken, adapted[0].fresh) if adapted else (None, None)
        parts.append(PartReport(name, len(keys) - len(adapted), len(adapted), taken, fresh))
    return tuple(parts)


def _part_of(key: str) -> str:
    """Return how the keys of a part begin: the module's name, within the decoder that of its own modules."""
    names = key.split(".")
    return ".".join(names[:2]) if names[0] == "decoder" else names[0]


def _fit_queries(given: Tensor, initial: Tensor) -> tuple[Tensor, Change]:
    """Cut the queries (Q, D) of a file, or go on with the detector's own."""
    num_given, num_wanted = len(given), len(initial)
    if num_given > num_wanted:
        return given[:num_wanted], Change(f"first {num_wanted} of {num_given} queries", None)
    change = Change(f"{num_given} of {num_wanted} queries", f"{num_wanted - num_given} queries")
    return torch.cat([given, initial[num_given:]]), change


def _fit_class_rows(
    given: Tensor, initial: Tensor, known_names: Sequence[str], class_names: Sequence[str], *, is_softmax: bool
) -> Tensor:
    rows = {name: row for row, name in enumerate(known_names)}
    fitted = initial.clone()
    for row, name in enumerate(class_names):
        if name in rows:
            fitted[row] = given[rows[name]]
    if is_softmax:
        fitted[-1] = given[-1]
    return fitted

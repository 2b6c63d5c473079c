"""Where a run stands: counters, the best so far, and the means since the last record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LossWindow:
    """Sums over the steps since the last record.

    Attributes:
        num_steps: how many.
        loss: sum of the losses.
        num_norms: how many of them have a norm of the gradients: steps that float16 overflowed in have none.
        grad_norm: sum of these norms.
        terms: sums of the terms by name.
    """

    num_steps: int = 0
    loss: float = 0.0
    num_norms: int = 0
    grad_norm: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, grad_norm: float | None, terms: Mapping[str, float]) -> None:
        """Add the numbers of one step."""
        self.num_steps += 1
        self.loss += loss
        if grad_norm is not None:
            self.num_norms += 1
            self.grad_norm += grad_norm
        self.terms = {name: self.terms.get(name, 0.0) + value for name, value in terms.items()}

    def pop_means(self) -> dict[str, Any]:
        """Return `loss`, `grad_norm` and `terms` as means over the steps, of which there must be one; begin anew."""
        count = self.num_steps
        terms = {name: value / count for name, value in self.terms.items()}
        grad_norm = self.grad_norm / self.num_norms if self.num_norms else None
        means = {"loss": self.loss / count, "grad_norm": grad_norm, "terms": terms}
        self.num_steps, self.loss, self.num_norms, self.grad_norm, self.terms = 0, 0.0, 0, 0.0, {}
        return means


@dataclass
class TrainState:
    """Everything, besides weights and moments, that the rest of a run follows from.

    There are no random states among it: the order of images, their augmentation, the repetition of labels and
    dropout are drawn anew in each epoch or step, from the seed and these counters.

    Attributes:
        epoch: epochs that are over, with their evaluation.
        batches_done: batches trained on in the epoch that is under way; all of them where only its evaluation
            is left to do.
        step: optimizer steps done.
        closed_step: those that an evaluation and a checkpoint followed, as far as they were due.
        best_ap: the highest AP so far; None before an evaluation found one.
        best_step: the step that it was reached at.
        num_worse: evaluations since then.
        num_skipped: steps that float16 overflowed in, so that nothing was updated.
        seconds: training time of earlier sessions and this one.
        window: for the next record.
    """

    epoch: int = 0
    batches_done: int = 0
    step: int = 0
    closed_step: int = 0
    best_ap: float | None = None
    best_step: int | None = None
    num_worse: int = 0
    num_skipped: int = 0
    seconds: float = 0.0
    window: LossWindow = field(default_factory=LossWindow)

    def offer(self, ap: float | None) -> bool:
        """Take the AP of the present step; return whether it is the highest so far.

        No AP at all (nothing was annotated) counts as less than 0, so that the first evaluation is always best.
        """
        is_best = self.best_step is None or (ap is not None and (self.best_ap is None or ap > self.best_ap))
        self.num_worse += 1
        if is_best:
            self.best_ap, self.best_step, self.num_worse = ap, self.step, 0
        return is_best

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and dictionaries."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """Return the state that `to_dict` wrote.

        Raises:
            TypeError: keys are missing or unknown.
        """
        return cls(**{**values, "window": LossWindow(**values["window"])})

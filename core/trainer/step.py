"""One optimizer step: losses of all parts of a batch, gradients, update, and the checks between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.assembly import Assembly
from core.datasets.batches import Batch
from core.errors import DivergedError, ProcessLost
from core.losses.criterion import Normalisers
from core.models.detector import Detector
from core.processes import Processes
from core.trainer.batch_statistics import BatchStatistics
from core.trainer.failures import diverged, non_finite_terms
from core.trainer.optimizer import build_optimizer, clip_gradients, learning_rate_factor, set_learning_rates
from core.trainer.parts import Part, Passes
from core.trainer.precision import MixedPrecision
from core.trainer.weight_average import WeightAverage


@dataclass(frozen=True)
class StepNumbers:
    """What one step came to, over all its parts.

    Attributes:
        loss: the weighted sum that was differentiated.
        terms: the unweighted terms by name.
        grad_norm: L2 norm of all gradients together, before clipping.
        learning_rate: that of the model without its backbone.
        num_images: in all parts.
        was_skipped: whether float16 overflowed, so that nothing was updated.
    """

    loss: float
    terms: dict[str, float]
    grad_norm: float
    learning_rate: float
    num_images: int
    was_skipped: bool = False


@dataclass(frozen=True)
class _Totals:
    """What all parts of a step, in all processes, add up to."""

    normalisers: Normalisers
    num_images: int


@dataclass
class _Attempt:
    """A step that is being made.

    Attributes:
        parts: of this process.
        totals: of all processes.
        step: optimizer steps done before.
        epoch: epochs done before.
        numbers: each part's loss and terms, once they are known.
    """

    parts: Sequence[Part]
    totals: _Totals
    step: int
    epoch: int
    numbers: Sequence[Mapping[str, float]] = ()


class Stepper:
    """Makes optimizer steps.

    However many processes and micro-batches share a batch, their gradients add up to that of the whole batch:
    losses are divided by the sums of all parts. (Batch norm that trains has statistics of its own in each part.)

    The host waits for the device once for each part, to match, and once for all other numbers of a step.

    Args:
        assembly: model, on its device, criterion and configuration.
        device: where the model is.
        diverged_folder: where a batch is kept that made a number infinite or NaN.
        processes: that share each step.

    Attributes:
        average: of the weights, if the configuration wants one.
        is_updating: whether an update has begun; set back by the caller, once all else says that the step was made.
            While it is not set, weights, statistics, moments and averages are of one step, also where `step` failed.
    """

    def __init__(self, assembly: Assembly, device: torch.device, diverged_folder: Path, processes: Processes) -> None:
        self.assembly = assembly
        self.model = assembly.model
        self.config = assembly.config
        self.diverged_folder = diverged_folder
        self.device = device
        self.processes = processes
        self.optimizer = build_optimizer(self.model, self.config.optimizer)
        self.precision = MixedPrecision(self.config.run.precision, device)
        self.passes = Passes(assembly, device, self.precision)
        decay = self.config.optimizer.ema_decay
        self.average = WeightAverage(self.model, decay) if decay is not None else None
        self.statistics = BatchStatistics(self.model)
        self.is_updating = False

    @property
    def best_model(self) -> Detector:
        """The weights to evaluate and to keep: averaged ones, if there are."""
        return self.model if self.average is None else self.average.model

    def are_weights_finite(self) -> bool:
        """Tell whether all weights are numbers: an update can make them infinite, which the next step finds."""
        models = [self.model] if self.average is None else [self.model, self.average.model]
        totals = [weight.detach().abs().max() for model in models for weight in model.parameters()]
        return bool(torch.stack(totals).isfinite().all())

    def train(self) -> None:
        """Set model and criterion to training mode."""
        self.model.train()
        self.assembly.criterion.train()

    def step(self, micro_batches: Sequence[Batch], step: int, epoch: int, num_steps: int) -> StepNumbers:
        """Update the weights once.

        Args:
            micro_batches: this process's parts of the batch, on any device.
            step: optimizer steps done before, over the whole run.
            epoch: epochs done before.
            num_steps: optimizer steps of the whole run.

        Raises:
            DivergedError: a loss or the norm of the gradients is not a finite number; weights and moments are as
                they were, and the part of the batch is kept in a file.
            ProcessLost: that happened in another process, or it is gone.
        """
        config = self.config.optimizer
        factor = learning_rate_factor(step, epoch, self.config.schedule, num_steps)
        learning_rate = set_learning_rates(self.optimizer, config, factor)
        places = range(self.processes.rank, self.processes.world_size * len(micro_batches), self.processes.world_size)
        parts = [self.passes.prepare(batch, place, step) for batch, place in zip(micro_batches, places, strict=True)]
        attempt = _Attempt(parts, self._totals(parts), step, epoch)
        self.statistics.keep()
        try:
            losses = self._add_gradients(attempt)
            self.processes.average(self.statistics.means_and_variances())
            norm = clip_gradients(self.model.parameters(), config.clip_norm)
            attempt.numbers, grad_norm = _to_host(losses, norm)
            loss, terms = self._sum_losses(attempt)
            if not math.isfinite(grad_norm) and self.config.run.precision != "float16":
                self._refuse_gradients(f"the norm of the gradients is {grad_norm}", attempt)
        except BaseException:
            self.statistics.put_back()
            raise
        was_updated = self._update(grad_norm, attempt)
        return StepNumbers(loss, terms, grad_norm, learning_rate, attempt.totals.num_images, not was_updated)

    def _add_gradients(self, attempt: _Attempt) -> list[dict[str, Tensor]]:
        """Add up the gradients of all parts in all processes; return each part's loss and terms, on the device.

        Raises:
            DivergedError: a matching cost is not a finite number.
            ProcessLost: that happened in another process.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[dict[str, Tensor]] = []
        fault: DivergedError | None = None
        try:
            for part in attempt.parts:
                losses += [self.passes.run(part, attempt.totals.normalisers, attempt.step)]
        except DivergedError as error:
            fault = self._diverged(f"{error.message} ({error.where})", attempt, [part])
        self._agree_on(fault, attempt.step)
        self.processes.sum_gradients(self.model.parameters())
        self.precision.unscale(self.optimizer)
        return losses

    def _update(self, grad_norm: float, attempt: _Attempt) -> bool:
        """Update weights, moments and averages; nothing here waits for another process.

        Returns:
            Whether it was done, or float16 had overflowed.

        Raises:
            DivergedError: it has overflowed too often in a row.
        """
        self.is_updating = True
        try:
            was_updated = self.precision.step(self.optimizer, grad_norm)
        except DivergedError as error:
            # All processes give float16 up at once, and nothing was changed.
            self.is_updating = False
            try:
                self._refuse_gradients(error.message, attempt)
            finally:
                self.statistics.put_back()
            raise
        if not was_updated:
            self.statistics.put_back()
        elif self.average is not None:
            self.average.update(attempt.step)
        return was_updated

    def _totals(self, parts: Sequence[Part]) -> _Totals:
        num_boxes, num_matched, num_unmatched, num_images = self.processes.sum(
            [
                sum(part.normalisers.num_boxes for part in parts),
                sum(part.normalisers.num_matched for part in parts),
                sum(part.normalisers.num_unmatched for part in parts),
                sum(len(part.batch) for part in parts),
            ]
        )
        return _Totals(Normalisers(int(num_boxes), int(num_matched), int(num_unmatched)), int(num_images))

    def _sum_losses(self, attempt: _Attempt) -> tuple[float, dict[str, float]]:
        """Return the loss and the terms by name, summed over all parts of all processes.

        Raises:
            DivergedError: the loss of a part of this process is not a finite number.
            ProcessLost: that of another process is not.
        """
        shares = [
            {name: value * _share(name, part, attempt.totals) for name, value in row.items()}
            for part, row in zip(attempt.parts, attempt.numbers, strict=True)
        ]
        names = list(shares[0])
        loss, *values = self.processes.sum([sum(row[name] for row in shares) for name in names])
        if not math.isfinite(loss):
            # The same sum in all processes: each looks for the fault among its own parts.
            self._agree_on(self._fault_of(attempt), attempt.step)
        return loss, dict(zip(names[1:], values, strict=True))

    def _fault_of(self, attempt: _Attempt) -> DivergedError | None:
        for part, row in zip(attempt.parts, attempt.numbers, strict=True):
            terms = {name: value for name, value in row.items() if name != "loss"}
            if faults := non_finite_terms(row["loss"], terms):
                return self._diverged(", ".join(faults), attempt, [part], [row])
        return None

    def _refuse_gradients(self, reason: str, attempt: _Attempt) -> None:
        """Raise in all processes for gradients whose sum is not finite; the process that added such keeps its part.

        Raises:
            DivergedError: they are this process's, or nobody's: the main process keeps all its parts then.
            ProcessLost: they are another's.
        """
        found = self.passes.blame(attempt.parts, attempt.totals.normalisers, attempt.step)
        fault: DivergedError | None = None
        if found is not None:
            part, parameters = found
            numbers = [row for each, row in zip(attempt.parts, attempt.numbers, strict=True) if each is part]
            fault = self._diverged(reason, attempt, [part], numbers, parameters)
        is_known = self.processes.any(found is not None)
        if not is_known and self.processes.is_main:
            fault = self._diverged(reason, attempt, attempt.parts, attempt.numbers)
        self._agree_on(fault, attempt.step)

    def _agree_on(self, fault: DivergedError | None, step: int) -> None:
        """Raise in all processes if a number of any of them is not finite."""
        is_anywhere = self.processes.any(fault is not None)
        if fault is not None:
            raise fault
        if is_anywhere:
            raise ProcessLost(f"another process of this run met a number that is not finite at step {step + 1}")

    def _diverged(
        self,
        reason: str,
        attempt: _Attempt,
        parts: Sequence[Part],
        losses: Sequence[Mapping[str, float]] = (),
        parameters: Sequence[str] = (),
    ) -> DivergedError:
        """Keep parts of a step to make it again, with the model as it was before it."""
        self.statistics.put_back()
        return diverged(
            reason,
            assembly=self.assembly,
            parts=parts,
            losses=losses,
            normalisers=attempt.totals.normalisers,
            precision=self.precision,
            step=attempt.step,
            epoch=attempt.epoch,
            folder=self.diverged_folder,
            processes=self.processes,
            parameters=parameters,
        )


def _to_host(losses: Sequence[Mapping[str, Tensor]], grad_norm: Tensor) -> tuple[list[dict[str, float]], float]:
    """Return the numbers of each part and the norm, in one transfer: each would wait for the device otherwise."""
    on_device = [value.float() for part in losses for value in part.values()]
    values = iter(torch.stack([*on_device, grad_norm.float()]).cpu().tolist())
    return [{name: next(values) for name in part} for part in losses], next(values)


def _share(name: str, part: Part, totals: _Totals) -> float:
    """Return the weight of a part's term: losses add up, errors are means over images or matches."""
    if name.startswith("cardinality_error"):
        return len(part.batch) / totals.num_images
    if name == "class_error" and totals.normalisers.num_matched:
        return part.normalisers.num_matched / totals.normalisers.num_matched
    return len(part.batch) / totals.num_images if name == "class_error" else 1.0

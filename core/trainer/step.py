"""One optimizer step: losses of all parts of a batch, gradients, update, and the checks between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from core.assembly import Assembly
from core.datasets.batches import Batch
from core.datasets.seeds import derived_generator, derived_seed
from core.errors import DivergedError, ProcessLost
from core.losses.criterion import Normalisers
from core.models.detector import Detector
from core.processes import Processes
from core.structures import Target
from core.trainer.failures import diverged, non_finite_terms
from core.trainer.optimizer import build_optimizer, clip_gradients, learning_rate_factor, set_learning_rates
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
class _Part:
    """A micro-batch with the labels that it is trained on."""

    batch: Batch
    targets: Sequence[Target]
    normalisers: Normalisers


@dataclass(frozen=True)
class _Totals:
    """What all parts of a step, in all processes, add up to."""

    normalisers: Normalisers
    num_images: int


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
    """

    def __init__(self, assembly: Assembly, device: torch.device, diverged_folder: Path, processes: Processes) -> None:
        self.model = assembly.model
        self.criterion = assembly.criterion.to(device)
        self.config = assembly.config
        self.device = device
        self.diverged_folder = diverged_folder
        self.processes = processes
        self.optimizer = build_optimizer(self.model, self.config.optimizer)
        self.precision = MixedPrecision(self.config.run.precision, device)
        decay = self.config.optimizer.ema_decay
        self.average = WeightAverage(self.model, decay) if decay is not None else None

    @property
    def best_model(self) -> Detector:
        """The weights to evaluate and to keep: averaged ones, if there are."""
        return self.model if self.average is None else self.average.model

    def train(self) -> None:
        """Set model and criterion to training mode."""
        self.model.train()
        self.criterion.train()

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
        parts = [self._augmented(batch, step) for batch in micro_batches]
        totals = self._totals(parts)
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[dict[str, Tensor]] = []
        fault: DivergedError | None = None
        for number, part in enumerate(parts):
            # Dropout is the one thing that draws from the global generator. Seeded by step and part, it is the same
            # for a run that was resumed here, and whatever else has drawn from it meanwhile.
            place = number * self.processes.world_size + self.processes.rank
            torch.manual_seed(derived_seed("dropout", self.config.run.seed, step, place))
            try:
                losses.append(self._forward_backward(part, totals, step))
            except DivergedError as error:
                fault = error
                break
        self._agree_on(fault, step)
        self.processes.sum_gradients(self.model.parameters())
        self.precision.unscale(self.optimizer)
        norm = clip_gradients(self.model.parameters(), config.clip_norm)
        numbers, grad_norm = _to_host(losses, norm)
        loss, terms = self._sum_losses(parts, numbers, totals, step)
        if not math.isfinite(grad_norm) and self.config.run.precision != "float16":
            # The same sum in all processes: one of them keeps its part of the batch.
            reason = f"the norm of the gradients is {grad_norm}"
            self._agree_on(self._diverged(reason, micro_batches[-1], step) if self.processes.is_main else None, step)
        was_updated = self.precision.step(self.optimizer, grad_norm)
        self.processes.average(self._running_statistics())
        if self.average is not None and was_updated:
            self.average.update(step)
        return StepNumbers(loss, terms, grad_norm, learning_rate, totals.num_images, not was_updated)

    def _augmented(self, batch: Batch, step: int) -> _Part:
        """Repeat the labels image by image, so that no part depends on what else is in it."""
        num_queries = self.config.model.num_queries
        targets: list[Target] = []
        for image_id, target in zip(batch.image_ids, batch.targets, strict=True):
            generator = derived_generator("labels", self.config.run.seed, step, image_id)
            targets += self.criterion.augment([target], num_queries, generator)
        return _Part(batch, targets, Normalisers.of(targets, num_queries))

    def _totals(self, parts: Sequence[_Part]) -> _Totals:
        num_boxes, num_matched, num_unmatched, num_images = self.processes.sum(
            [
                sum(part.normalisers.num_boxes for part in parts),
                sum(part.normalisers.num_matched for part in parts),
                sum(part.normalisers.num_unmatched for part in parts),
                sum(len(part.batch) for part in parts),
            ]
        )
        return _Totals(Normalisers(int(num_boxes), int(num_matched), int(num_unmatched)), int(num_images))

    def _forward_backward(self, part: _Part, totals: _Totals, step: int) -> dict[str, Tensor]:
        """Add a part's gradients; return its loss, first, and its terms by name, all on the device.

        Raises:
            DivergedError: a matching cost is not a finite number; nothing was differentiated.
        """
        images = part.batch.to(self.device).images
        try:
            with self.precision.autocast():
                output = self.model(images)
            losses = self.criterion(output, part.targets, normalisers=totals.normalisers)
        except DivergedError as error:
            raise self._diverged(f"{error.message} ({error.where})", part.batch, step) from error
        self.precision.backward(losses.total)
        return {"loss": losses.total.detach(), **losses.terms}

    def _sum_losses(
        self, parts: Sequence[_Part], numbers: Sequence[Mapping[str, float]], totals: _Totals, step: int
    ) -> tuple[float, dict[str, float]]:
        """Return the loss and the terms by name, summed over all parts of all processes.

        Raises:
            DivergedError: the loss of a part of this process is not a finite number.
            ProcessLost: that of another process is not.
        """
        shares = [
            {name: value * _share(name, part, totals) for name, value in row.items()}
            for part, row in zip(parts, numbers, strict=True)
        ]
        names = list(shares[0])
        loss, *values = self.processes.sum([sum(row[name] for row in shares) for name in names])
        if not math.isfinite(loss):
            # The same sum in all processes: each looks for the fault among its own parts.
            self._agree_on(self._fault_of(parts, numbers, step), step)
        return loss, dict(zip(names[1:], values, strict=True))

    def _fault_of(
        self, parts: Sequence[_Part], numbers: Sequence[Mapping[str, float]], step: int
    ) -> DivergedError | None:
        for part, row in zip(parts, numbers, strict=True):
            terms = {name: value for name, value in row.items() if name != "loss"}
            if faults := non_finite_terms(row["loss"], terms):
                return self._diverged(", ".join(faults), part.batch, step)
        return None

    def _running_statistics(self) -> Iterator[Tensor]:
        """Yield the statistics that each process has updated by its own images."""
        for module in self.model.modules():
            if isinstance(module, _BatchNorm) and module.training:
                yield from (tensor for tensor in (module.running_mean, module.running_var) if tensor is not None)

    def _agree_on(self, fault: DivergedError | None, step: int) -> None:
        """Raise in all processes if a number of any of them is not finite."""
        is_anywhere = self.processes.any(fault is not None)
        if fault is not None:
            raise fault
        if is_anywhere:
            raise ProcessLost(f"another process of this run met a number that is not finite at step {step + 1}")

    def _diverged(self, reason: str, batch: Batch, step: int) -> DivergedError:
        rank = self.processes.rank
        return diverged(reason, step=step + 1, batch=batch, model=self.model, folder=self.diverged_folder, rank=rank)


def _to_host(losses: Sequence[Mapping[str, Tensor]], grad_norm: Tensor) -> tuple[list[dict[str, float]], float]:
    """Return the numbers of each part and the norm, in one transfer: each would wait for the device otherwise."""
    on_device = [value.float() for part in losses for value in part.values()]
    values = iter(torch.stack([*on_device, grad_norm.float()]).cpu().tolist())
    return [{name: next(values) for name in part} for part in losses], next(values)


def _share(name: str, part: _Part, totals: _Totals) -> float:
    """Return the weight of a part's term: losses add up, errors are means over images or matches."""
    if name.startswith("cardinality_error"):
        return len(part.batch) / totals.num_images
    if name == "class_error" and totals.normalisers.num_matched:
        return part.normalisers.num_matched / totals.normalisers.num_matched
    return len(part.batch) / totals.num_images if name == "class_error" else 1.0

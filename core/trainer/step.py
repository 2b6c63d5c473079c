"""One optimizer step: losses of all parts of a batch, gradients, update, and the checks between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
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
        sums: dict[str, float] = {}
        fault: DivergedError | None = None
        for number, part in enumerate(parts):
            # Dropout is the one thing that draws from the global generator. Seeded by step and part, it is the same
            # for a run that was resumed here, and whatever else has drawn from it meanwhile.
            place = number * self.processes.world_size + self.processes.rank
            torch.manual_seed(derived_seed("dropout", self.config.run.seed, step, place))
            try:
                for name, value in self._forward_backward(part, totals, step).items():
                    sums[name] = sums.get(name, 0.0) + value
            except DivergedError as error:
                fault = error
                break
        self._agree_on(fault, step)
        self.processes.sum_gradients(self.model.parameters())
        self.precision.unscale(self.optimizer)
        grad_norm = clip_gradients(self.model.parameters(), config.clip_norm).item()
        if not math.isfinite(grad_norm) and self.config.run.precision != "float16":
            # The same sum in all processes: one of them keeps its part of the batch.
            reason = f"the norm of the gradients is {grad_norm}"
            self._agree_on(self._diverged(reason, micro_batches[-1], step) if self.processes.is_main else None, step)
        was_updated = self.precision.step(self.optimizer)
        self.processes.average(self._running_statistics())
        if self.average is not None and was_updated:
            self.average.update(step)
        loss, *values = self.processes.sum(list(sums.values()))
        terms = dict(zip(list(sums)[1:], values, strict=True))
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

    def _forward_backward(self, part: _Part, totals: _Totals, step: int) -> dict[str, float]:
        """Add a part's gradients; return what it adds to the loss, first, and to the terms by name.

        Raises:
            DivergedError: one of them is not a finite number; nothing was differentiated.
        """
        images = part.batch.images.to(self.device)
        targets = [target.to(self.device) for target in part.targets]
        try:
            with self.precision.autocast():
                output = self.model(images)
            losses = self.criterion(output, targets, normalisers=totals.normalisers)
        except DivergedError as error:
            raise self._diverged(f"{error.message} ({error.where})", part.batch, step) from error
        # One transfer for all numbers: each would wait for the device otherwise.
        numbers = torch.stack([losses.total.detach().float(), *(term.float() for term in losses.terms.values())])
        loss, *values = numbers.tolist()
        terms = dict(zip(losses.terms, values, strict=True))
        if faults := non_finite_terms(loss, terms):
            raise self._diverged(", ".join(faults), part.batch, step)
        self.precision.backward(losses.total)
        return {"loss": loss} | {name: value * _share(name, part, totals) for name, value in terms.items()}

    def _running_statistics(self) -> Iterator[torch.Tensor]:
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


def _share(name: str, part: _Part, totals: _Totals) -> float:
    """Return the weight of a part's term: losses add up, errors are means over images or matches."""
    if name.startswith("cardinality_error"):
        return len(part.batch) / totals.num_images
    if name == "class_error" and totals.normalisers.num_matched:
        return part.normalisers.num_matched / totals.normalisers.num_matched
    return len(part.batch) / totals.num_images if name == "class_error" else 1.0

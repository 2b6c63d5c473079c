"""One optimizer step: loss, gradients, update, and the checks between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from core.assembly import Assembly
from core.datasets.batches import Batch
from core.datasets.seeds import derived_generator, derived_seed
from core.errors import DivergedError
from core.trainer.failures import diverged, non_finite_terms
from core.trainer.optimizer import build_optimizer, clip_gradients, learning_rate_factor, set_learning_rates


@dataclass(frozen=True)
class StepNumbers:
    """What one step came to.

    Attributes:
        loss: the weighted sum that was differentiated.
        terms: the unweighted terms by name.
        grad_norm: L2 norm of all gradients together, before clipping.
        learning_rate: that of the model without its backbone.
    """

    loss: float
    terms: dict[str, float]
    grad_norm: float
    learning_rate: float


class Stepper:
    """Makes optimizer steps.

    Args:
        assembly: model, on its device, criterion and configuration.
        device: where the model is.
        diverged_folder: where a batch is kept that made a number infinite or NaN.
    """

    def __init__(self, assembly: Assembly, device: torch.device, diverged_folder: Path) -> None:
        self.model = assembly.model
        self.criterion = assembly.criterion.to(device)
        self.config = assembly.config
        self.device = device
        self.diverged_folder = diverged_folder
        self.optimizer = build_optimizer(self.model, self.config.optimizer)

    def train(self) -> None:
        """Set model and criterion to training mode."""
        self.model.train()
        self.criterion.train()

    def step(self, batch: Batch, step: int, epoch: int) -> StepNumbers:
        """Update the weights once.

        Args:
            batch: on any device.
            step: optimizer steps done before, over the whole run.
            epoch: epochs done before.

        Raises:
            DivergedError: a loss or the norm of the gradients is not a finite number; weights and moments are as
                they were, and the batch is kept in a file.
        """
        seed, config = self.config.run.seed, self.config.optimizer
        # Dropout is the one thing that draws from the global generator. Seeded by the step, it is the same for a
        # run that was resumed here, and whatever else has drawn from it meanwhile.
        torch.manual_seed(derived_seed("dropout", seed, step))
        factor = learning_rate_factor(step, epoch, self.config.schedule)
        learning_rate = set_learning_rates(self.optimizer, config, factor)
        on_device = batch.to(self.device)
        try:
            output = self.model(on_device.images)
            losses = self.criterion(output, on_device.targets, derived_generator("labels", seed, step))
        except DivergedError as error:
            raise self._diverged(f"{error.message} ({error.where})", batch, step) from error
        # One transfer for all numbers: each would wait for the device otherwise.
        numbers = torch.stack([losses.total.detach().float(), *(term.float() for term in losses.terms.values())])
        loss, *values = numbers.tolist()
        terms = dict(zip(losses.terms, values, strict=True))
        if faults := non_finite_terms(loss, terms):
            raise self._diverged(", ".join(faults), batch, step)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        grad_norm = clip_gradients(self.model.parameters(), config.clip_norm).item()
        if not math.isfinite(grad_norm):
            raise self._diverged(f"the norm of the gradients is {grad_norm}", batch, step)
        self.optimizer.step()
        return StepNumbers(loss, terms, grad_norm, learning_rate)

    def _diverged(self, reason: str, batch: Batch, step: int) -> DivergedError:
        return diverged(reason, step=step + 1, batch=batch, model=self.model, folder=self.diverged_folder)

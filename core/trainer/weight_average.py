"""An exponential moving average of the weights: a model that changes less from step to step than the trained one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from core.models.detector import Detector


class WeightAverage:
    """Averages a detector's parameters and batch-norm statistics over the steps of a run.

    Statistics are averaged like weights, as those of the trained model alone would not fit the averaged weights;
    whole numbers (batch norm's counters) are copied.

    Args:
        model: that is trained, on its device.
        decay: share of the average that each step keeps, once there have been many.

    Attributes:
        model: the average, in evaluation mode; its keys are those of the trained model.
    """

    def __init__(self, model: Detector, decay: float) -> None:
        # Its weights stay marked as trainable, though nothing differentiates them: `matmul` chooses its way by that
        # mark, and so rounds as in the model that is loaded from a checkpoint.
        self.model = copy.deepcopy(model).eval()
        self.decay = decay
        trained, averaged = model.state_dict(keep_vars=True), self.model.state_dict(keep_vars=True)
        pairs = [(averaged[key], trained[key]) for key in averaged]
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after an optimizer step.

        Args:
            step: optimizer steps done before it, over the whole run; the average of few forgets faster.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = zip(*self._averaged, strict=True)
        average_all: Callable[..., None] = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average_all(averages, values, None)
        for average, value in self._copied:
            average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes: the averaged model's tensors under `model`."""
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the decay stays the configured one.

        Raises:
            KeyError: there is no `model` in it.
            RuntimeError: it is of another model.
        """
        weights: Mapping[str, Tensor] = state["model"]
        self.model.load_state_dict(weights)

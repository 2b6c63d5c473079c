"""Mixed precision: the model computes in half precision, its weights and everything else are float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from core.errors import DivergedError, MachineError, UsageError

MAX_SKIPPED_IN_A_ROW = 50
"""Overflows after which float16 is given up; the first few of a run only find the scale."""


class MixedPrecision:
    """Autocast for the forward pass, and scaled gradients where they need it.

    float16 has few small numbers, so that the loss is scaled up before the backward pass and the gradients down
    after it. Where they overflow, the step is skipped and the scale halved (Micikevicius et al. 2018).

    Args:
        precision: of the model's forward and backward pass.
        device: where the model is.

    Attributes:
        num_skipped_in_a_row: steps that were skipped since the last one that was made.

    Raises:
        UsageError: this kind of device cannot be trained on in float16.
        MachineError: the CUDA device has no bfloat16.
    """

    def __init__(self, precision: Literal["float32", "bfloat16", "float16"], device: torch.device) -> None:
        _check_device(precision, device)
        self.device = device
        self.dtype: torch.dtype = getattr(torch, precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.num_skipped_in_a_row = 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a new context to run the model in; its logits may be in half precision, its boxes never are."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled up in float16."""
        torch.autograd.backward(self.scaler.scale(loss))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale the gradients back, once a step, before they are clipped; they may be infinite or NaN in float16."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, grad_norm: float) -> bool:
        """Update the weights, or leave them where gradients overflowed float16.

        Args:
            optimizer: `unscale` was called with it.
            grad_norm: of its unscaled gradients, before they were clipped; not finite if one of them is not.

        Returns:
            Whether the update was made.

        Raises:
            DivergedError: it was not, many times in a row.
        """
        # The scaler's own `step` would bring to the host, once more, what the norm has told already.
        was_made = math.isfinite(grad_norm)
        if was_made:
            optimizer.step()
            self.scaler.update()
            self.num_skipped_in_a_row = 0
            return True
        # The scale and the count stay as they were then, for whoever looks into it.
        if self.num_skipped_in_a_row + 1 >= MAX_SKIPPED_IN_A_ROW:
            raise DivergedError(
                f"the gradients overflowed float16 in {MAX_SKIPPED_IN_A_ROW} steps in a row, however little the loss "
                "was scaled",
                where="run.precision",
                hint="use run.precision=bfloat16 or float32, or lower optimizer.lr",
            )
        self.num_skipped_in_a_row += 1
        self.scaler.update()
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for `load_state_dict`."""
        return {"scaler": self.scaler.state_dict(), "num_skipped_in_a_row": self.num_skipped_in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; one of another precision says nothing about the scale.

        Raises:
            KeyError: something is missing in it.
        """
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(state["scaler"]))
        self.num_skipped_in_a_row = int(state["num_skipped_in_a_row"])


def _check_device(precision: str, device: torch.device) -> None:
    if precision == "float16" and device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"float16 cannot be trained in on {device.type}",
            where="run.precision",
            hint="use run.precision=bfloat16 or float32",
        )
    if precision == "bfloat16" and device.type == "cuda" and not _has_bfloat16(device):
        raise MachineError(
            f"{torch.cuda.get_device_name(device)} has no bfloat16",
            where="run.precision",
            hint="use run.precision=float16 or float32",
        )


def _has_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

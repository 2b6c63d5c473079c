"""Dropout with cheap random numbers: on CPUs PyTorch draws a number of 32 bits or more for each value, one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_LEVELS = 1 << 16


def keep_probability(dropout: float) -> float:
    """Return the probability that `draw_kept` keeps a value: 1 - dropout, in steps of 2^-16."""
    return 1 - _num_dropped_levels(dropout) / _LEVELS


def draw_kept(shape: Sequence[int], dropout: float, device: torch.device) -> Tensor:
    """Draw which values are kept, from the device's global generator.

    Args:
        shape: of the values.
        dropout: probability that a value is dropped, in [0, 1).
        device: of the values.

    Returns:
        Bool tensor of this shape, False for dropped values.
    """
    if device.type != "cpu":
        return torch.rand(shape, device=device) < keep_probability(dropout)
    return _draw_bits(shape) >= _threshold(dropout)


def drop(values: Tensor, dropout: float) -> Tensor:
    """Set values to zero at random, and scale the others so that their expectation stays (Srivastava et al. 2014).

    Args:
        values: any shape.
        dropout: probability that a value becomes zero, in [0, 1); 0 outside training.
    """
    if dropout == 0:
        return values
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(values, dropout)
    return values * _draw_factors(values, dropout)


def relu_and_drop(values: Tensor, dropout: float) -> Tensor:
    """Return `drop` of the positive part of values, of which nothing but the result is kept for the backward pass."""
    if dropout == 0 or values.device.type != "cpu" or torch.compiler.is_compiling():
        return drop(F.relu(values), dropout)
    dropped: Tensor = _ReluAndDrop.apply(values, dropout)
    return dropped


class _ReluAndDrop(torch.autograd.Function):
    """The result is positive where the gradient passes, and zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dropout: float) -> Tensor:
        result = F.relu(values).mul_(_draw_factors(values, dropout))
        ctx.save_for_backward(result)
        # As the factors have it: in half precision it is rounded.
        ctx.scale = torch.tensor(1 / keep_probability(dropout), dtype=values.dtype).item()
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        passed: Tensor = torch.ops.aten.threshold_backward(grad, result, 0)
        return passed.mul_(ctx.scale), None


def _draw_factors(values: Tensor, dropout: float) -> Tensor:
    """Draw what each value is multiplied by: 0, or the inverse of `keep_probability`."""
    factors = torch.empty(values.shape, dtype=values.dtype)
    return torch.ge(_draw_bits(values.shape), _threshold(dropout), out=factors).mul_(1 / keep_probability(dropout))


def _draw_bits(shape: Sequence[int]) -> Tensor:
    """Draw 16 bits for each value; one draw of 64 serves four of them."""
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
    return draws.view(torch.int16)[:count].view(shape)


def _threshold(dropout: float) -> int:
    """Return the least number of 16 bits, -32768 to 32767, that keeps a value."""
    return _num_dropped_levels(dropout) - _LEVELS // 2


def _num_dropped_levels(dropout: float) -> int:
    # Something is always kept, or the rest could not be scaled up.
    return min(round(dropout * _LEVELS), _LEVELS - 1)

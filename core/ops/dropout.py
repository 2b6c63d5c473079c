"""Dropout with cheap random numbers: on CPUs PyTorch draws a number of 32 bits or more for each value, one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 1 << 16


def keep_probability(dropout: float) -> float:
    """Return the probability that `draw_dropped` keeps a value: 1 - dropout, in steps of 2^-16."""
    return 1 - _num_dropped_levels(dropout) / _LEVELS


def draw_dropped(shape: Sequence[int], dropout: float, device: torch.device) -> Tensor:
    """Draw which values are dropped, from the device's global generator.

    Args:
        shape: of the values.
        dropout: probability that a value is dropped, in [0, 1).
        device: of the values.

    Returns:
        Bool tensor of this shape.
    """
    if device.type != "cpu":
        return torch.rand(shape, device=device) >= keep_probability(dropout)
    # One draw of 64 bits serves four values.
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
    threshold = _num_dropped_levels(dropout) - _LEVELS // 2
    return (draws.view(torch.int16)[:count] < threshold).view(shape)


def drop(values: Tensor, dropout: float) -> Tensor:
    """Set values to zero at random, and scale the others so that their expectation stays (Srivastava et al. 2014).

    Args:
        values: any shape.
        dropout: probability that a value becomes zero, in [0, 1); 0 outside training.
    """
    if dropout == 0:
        return values
    if values.device.type != "cpu":
        return F.dropout(values, dropout)
    dropped = draw_dropped(values.shape, dropout, values.device)
    return values.masked_fill(dropped, 0).mul_(1 / keep_probability(dropout))


def _num_dropped_levels(dropout: float) -> int:
    # Something is always kept, or the rest could not be scaled up.
    return min(round(dropout * _LEVELS), _LEVELS - 1)

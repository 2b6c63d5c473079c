"""A model on its device, and numbers that come out the same again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Choose deterministic algorithms on a CPU, and leave the caller's choice and random state as they were.

    On CUDA some operations (RoIAlign's gradient) have none, and the choice stays as it is.
    """
    was_on = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # its flag is made at run time, unseen by type checkers
    filled = memory.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            if device.type == "cpu":
                torch.use_deterministic_algorithms(True)
                # It costs time, and helps only code that reads memory that it never wrote.
                memory.fill_uninitialized_memory = False
            yield
        finally:
            torch.use_deterministic_algorithms(was_on, warn_only=warned_only)
            memory.fill_uninitialized_memory = filled

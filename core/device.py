"""Which device computes, and a model on it."""

from __future__ import annotations

import torch

from core.errors import MachineError, UsageError
from core.models.detector import Detector


def choose_device(name: str) -> torch.device:
    """Return the device that a user means.

    Args:
        name: `auto` (CUDA if there is one, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        UsageError: there is no such kind of device.
        MachineError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device '{name}'", where="--device", hint="known: auto, cpu, cuda, cuda:N, mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MachineError("CUDA was asked for, but PyTorch sees no CUDA device", where="--device", hint="--device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(
            f"there is no {name}: this machine has {torch.cuda.device_count()} CUDA devices",
            where="--device",
            hint="--device cuda:0",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise MachineError("MPS was asked for, but this machine has none", where="--device", hint="--device cpu")
    return device


def place(model: Detector, device: torch.device) -> None:
    """Move a detector to a device, its backbone in the memory layout that convolutions are fastest in.

    Whoever evaluates a model as training evaluates it, to the last bit, places it by this function.
    """
    model.to(device)
    model.backbone.to(memory_format=torch.channels_last)

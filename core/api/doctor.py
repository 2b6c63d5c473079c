"""What this machine can do, and what it lacks."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from core.api.common import RUNS
from core.doctor.check import Check, Diagnosis, guarded

__all__ = ["Check", "Diagnosis", "diagnose"]


def diagnose(data: Path | None = None) -> Diagnosis:
    """Look at everything that commands need: packages, operators, devices, memory, disks, folders, a data set.

    Never raises for what it finds, uses no network, and leaves no file behind. PyTorch is loaded.

    Args:
        data: a data set to open as well.
    """
    from core.doctor import machine, packages

    checks = guarded("dedetr", packages.look_at_python)
    checks += _look_at_torch()
    checks += guarded("other packages", packages.look_at_requirements)
    checks += guarded("optional packages", packages.look_at_extras)
    checks += guarded("current folder", partial(machine.look_at_folder, "current folder", Path.cwd()))
    checks += guarded("runs", partial(machine.look_at_folder, "runs", RUNS))
    checks += guarded("environment", machine.look_at_environment)
    if data is not None:
        from core.doctor.datasets import look_at_dataset

        checks += guarded("data", partial(look_at_dataset, data), about_data=True)
    return Diagnosis(tuple(checks))


def _look_at_torch() -> list[Check]:
    """Look at what needs PyTorch, as far as it can be loaded: what fails for the lack of it is not told again."""
    from core.doctor import devices, machine, operators, packages

    checks = guarded("torch", packages.look_at_torch, hint=packages.PAIR_HINT)
    if "torch" not in sys.modules:
        return checks
    checks += guarded("CPU", devices.look_at_cpu)
    checks += guarded("CUDA", devices.look_at_cuda)
    checks += guarded("MPS", devices.look_at_mps)
    checks += guarded("memory", machine.look_at_memory)
    checks += guarded("torchvision", packages.look_at_torchvision, hint=packages.PAIR_HINT)
    if "torchvision" not in sys.modules:
        return checks
    for device in ("cpu", *devices.cuda_devices()):
        checks += guarded(f"torchvision operators on {device}", partial(operators.look_at_operators, device))
        checks += guarded(f"sparse attention on {device}", partial(operators.look_at_attention, device))
    checks += guarded("RoIAlign of detectron2", operators.look_at_roi_backends)
    checks += guarded("weights cache", machine.look_at_cache)
    return checks

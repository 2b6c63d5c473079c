"""What computes here: cores and threads, CUDA, MPS."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

from core.doctor.check import Check

_PROCESSORS = Path("/proc/cpuinfo")
_CPU_QUOTAS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_GIB = 1 << 30


def look_at_cpu() -> Iterator[Check]:
    """Tell how many cores there are, and whether PyTorch uses more threads than these."""
    import torch

    num_cores, num_threads = usable_cores(), torch.get_num_threads()
    value = f"{_processor_name()}, usable cores: {num_cores}, threads: {num_threads}"
    if num_threads > num_cores:
        hint = f"export OMP_NUM_THREADS={num_cores}: more threads than cores wait for each other"
        yield Check("CPU", "warn", value, hint)
    else:
        yield Check("CPU", "ok", value)


def usable_cores() -> int:
    """Return how many cores this process may use: fewer than the machine has in many containers and jobs."""
    num_cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        num_cores = len(os.sched_getaffinity(0))
    quota = next((_cores_of_quota(file) for file in _CPU_QUOTAS if file.is_file()), None)
    return num_cores if quota is None else min(num_cores, quota)


def look_at_cuda() -> Iterator[Check]:
    """Tell the CUDA devices, or why there is none although the machine has an NVIDIA driver."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if is_available:
        for index in range(torch.cuda.device_count()):
            yield _cuda_device(index)
        return
    if not _NVIDIA_DRIVER.is_file():
        yield Check("CUDA", "ok", "no NVIDIA driver: the CPU computes")
        return
    driver = _NVIDIA_DRIVER.read_text(errors="replace").partition("\n")[0].strip()
    if torch.version.cuda is None:
        value = "this PyTorch is built without CUDA, and the machine has an NVIDIA driver"
        yield Check("CUDA", "warn", value, "install a CUDA build, see https://pytorch.org/get-started")
        return
    reason = str(said[0].message).partition("\n")[0] if said else "PyTorch sees no device"
    value = f"{reason} (PyTorch is built for CUDA {torch.version.cuda}; {driver})"
    hint = "update the driver, or install a PyTorch that is built for it; is CUDA_VISIBLE_DEVICES empty?"
    yield Check("CUDA", "warn", value, hint)


def look_at_mps() -> Iterator[Check]:
    """Tell whether Apple's GPU can be used, on Apple's machines alone."""
    import torch

    if platform.system() == "Darwin":
        yield Check("MPS", "ok", "available" if torch.backends.mps.is_available() else "not available")


def cuda_devices() -> list[str]:
    """Return the CUDA devices that can be computed on, as `--device` takes them."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def _cuda_device(index: int) -> Check:
    import torch

    properties = torch.cuda.get_device_properties(index)
    name = f"cuda:{index}"
    value = f"{properties.name}, {properties.total_memory / _GIB:.1f} GiB, compute capability "
    value += f"{properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
    try:
        free, _ = torch.cuda.mem_get_info(index)
        total = torch.ones(3, device=name).sum().item()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        return Check(name, "fail", f"{value}: {reason}", "is it used by others, or too old for this PyTorch?")
    if total != 3:
        return Check(name, "fail", f"{value}: 1 + 1 + 1 gives {total:g}", "look for faults of the driver or the device")
    return Check(name, "ok", f"{value}, {free / _GIB:.1f} GiB free")


def _processor_name() -> str:
    lines = _PROCESSORS.read_text(errors="replace").splitlines() if _PROCESSORS.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def _cores_of_quota(file: Path) -> int | None:
    """Return the cores that a container may use at once by its quota of time, at least one; None: all."""
    words = file.read_text().split()
    if file.name == "cpu.cfs_quota_us":
        words.append(file.with_name("cpu.cfs_period_us").read_text().strip())
    if len(words) != 2 or not all(word.isdigit() for word in words) or not int(words[1]):
        return None
    return max(1, int(words[0]) // int(words[1]))

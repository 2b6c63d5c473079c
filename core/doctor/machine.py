"""What a run needs of the machine besides what computes: memory, disks, folders, variables."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core.config.schema import Config
from core.doctor.check import Check
from core.errors import MachineError
from core.files import machine_errors, require_writable_folder
from core.torchrun import started_by_torchrun

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - its size is asked for, nothing is written
_MIB, _GIB = 1 << 20, 1 << 30
_ENOUGH_SHARED_MEMORY = 512 * _MIB
"""Each worker keeps two batches in it; four images of 800 x 1333 pixels take 12 MiB. Docker gives 64 MiB."""
_ENOUGH_MEMORY = 2 * _GIB
_ENOUGH_DISK, _LEAST_DISK = 2 * _GIB, 64 * _MIB
"""A checkpoint of a large model has about 0.5 GiB; two or three are kept while another is written."""
_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF",
    "TORCH_HOME",
)  # fmt: skip


def look_at_memory() -> Iterator[Check]:
    """Tell how much memory is free, and how much of it processes can share."""
    from core.datasets.image_cache import free_memory

    shared = shutil.disk_usage(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
    free = free_memory()
    if shared is not None and shared.free <= free:  # that is then all that is known of the rest
        yield Check("memory", "ok", f"at least {_size(free)} free")
    elif free >= _ENOUGH_MEMORY:
        yield Check("memory", "ok", f"{_size(free)} free")
    else:
        hint = "close other programs, or use a smaller --batch-size and --workers 0"
        yield Check("memory", "warn", f"{_size(free)} free", hint)
    if shared is None:
        return
    value = f"{_size(shared.free)} of {_size(shared.total)} free in {_SHARED_MEMORY}"
    if shared.free < _ENOUGH_SHARED_MEMORY:
        hint = "data workers hand images over in it: --workers 0, or start the container with --shm-size=2g"
        yield Check("shared memory", "warn", value, hint)
    else:
        yield Check("shared memory", "ok", value)


def look_at_folder(name: str, folder: Path) -> Iterator[Check]:
    """Tell whether a folder can be written, or made, and how much space there is.

    Raises:
        MachineError: it cannot.
    """
    require_writable_folder(folder)
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    # Permissions do not tell everything: a disk may be full, or mounted by another machine.
    with machine_errors(existing, "write"), tempfile.TemporaryFile(dir=existing) as file:
        file.write(b"dedetr")
    free = shutil.disk_usage(existing).free
    value = f"{folder.absolute()} can be written, {_size(free)} free"
    if free >= _ENOUGH_DISK:
        yield Check(name, "ok", value)
    else:
        hint = "free some space on this disk, or name a folder of another one with --out"
        yield Check(name, "fail" if free < _LEAST_DISK else "warn", value, hint)


def look_at_cache() -> Iterator[Check]:
    """Tell whether the folder of downloaded weights can be written, and has those of the default backbone."""
    import torch

    from core.models.backbone_weights import find_named_weights

    folder = Path(torch.hub.get_dir())
    yield from _as_warnings(look_at_folder("weights cache", folder))
    backbone = Config().backbone
    if backbone.weights is None:
        return
    file, _ = find_named_weights(backbone.name, backbone.weights)
    name = f"weights of {backbone.name}"
    if file.is_file():
        yield Check(name, "ok", str(file))
    else:
        hint = "`dedetr train --download` fetches them; or --backbone-weights FILE, or none to train from scratch"
        yield Check(name, "warn", f"{backbone.weights} is not at {file}", hint)


def look_at_environment() -> Iterator[Check]:
    """Tell variables that change what a run does, and an encoding in which not every file can be named."""
    settings = sorted(name for name in os.environ if name.startswith("DEDETR_") and "__" in name)
    found = [f"{name}={os.environ[name]}" for name in (*_VARIABLES, *settings) if name in os.environ]
    if started_by_torchrun():
        found.append("variables of torchrun")
    yield Check("environment", "ok", ", ".join(found) or "no variable is set that changes a run")
    encoding = sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") != "utf8":
        hint = "export PYTHONUTF8=1"
        yield Check("file names", "warn", f"are {encoding} here: names with other letters are not found", hint)


def _as_warnings(checks: Iterator[Check]) -> Iterator[Check]:
    """Pass checks on, with warnings in place of failures: nothing needs this folder that exists."""
    try:
        for check in checks:
            yield check if check.status == "ok" else Check(check.name, "warn", check.value, check.hint)
    except MachineError as error:
        yield Check("weights cache", "warn", str(error), "export TORCH_HOME=FOLDER, where weights can be kept")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB" if num_bytes >= _GIB else f"{num_bytes // _MIB} MiB"

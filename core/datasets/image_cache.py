"""Decoded images, kept in memory that a process shares with its data workers; and how much memory there is."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from core.annotations.records import ImageRecord
from core.errors import MachineError

_MEMORY_INFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - its size is asked for, nothing is written


class ImageCache:
    """Keeps each image of a data set from the first time that it is read, by whichever process reads it.

    There is one copy for a process and all its data workers, however these are started. Nothing is kept before
    `reserve`, which must come before the workers start.

    Args:
        images: of the data set, in its order, with their true sizes.

    Attributes:
        num_bytes: that all of them take.
    """

    def __init__(self, images: Sequence[ImageRecord]) -> None:
        self._sizes_hw = [(image.height, image.width) for image in images]
        self._firsts = [0, *accumulate(height * width * 3 for height, width in self._sizes_hw)]
        self.num_bytes = self._firsts[-1]
        self._memory: ctypes.Array[ctypes.c_uint8] | None = None

    def reserve(self) -> None:
        """Take the memory for all images, at once: a lack of it is met here, not in the middle of a run.

        Raises:
            MachineError: there is not enough.
        """
        if self._memory is not None:
            return
        try:
            # Behind the pixels is a byte for each image, 1 once it is there.
            self._lock = multiprocessing.Lock()
            self._memory = multiprocessing.RawArray(ctypes.c_uint8, self.num_bytes + len(self._sizes_hw))
        except (OSError, MemoryError, ImportError) as error:  # ImportError: no semaphores on this machine
            raise MachineError(
                f"no memory to keep images in: {error}", where="data.cache", hint="leave out --cache"
            ) from error

    def get(self, index: int, decode: Callable[[int], Tensor]) -> Tensor:
        """Return the image at `index`, (3, H, W) uint8, which must not be written to.

        Args:
            index: in the data set.
            decode: reads that image from its file; called where it is not kept yet. What it raises is passed on.
        """
        if self._memory is None:
            return decode(index)
        first, end = self._firsts[index : index + 2]
        kept = torch.frombuffer(self._memory, dtype=torch.uint8, count=end - first, offset=first)
        kept = kept.view(*self._sizes_hw[index], 3).permute(2, 0, 1)
        flag = self.num_bytes + index
        # Without the lock a processor that reorders writes might show another process the flag before the pixels.
        with self._lock:
            is_kept = self._memory[flag]
        if not is_kept:
            kept.copy_(decode(index))
            with self._lock:
                self._memory[flag] = 1
        return kept


def free_memory() -> int:
    """Return how many bytes could be shared between processes at most: free ones of the machine and of /dev/shm.

    In containers and jobs (cgroups) what their limits leave free. 0 where nothing is known.
    """
    limits = list(_free_in_cgroups())
    if _MEMORY_INFO.is_file():
        values = dict(line.split(":", 1) for line in _MEMORY_INFO.read_text().splitlines())
        limits.append(int(values["MemAvailable"].split()[0]) * 1024)
    elif hasattr(os, "sysconf"):  # macOS does not tell what is free
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    if _SHARED_MEMORY.is_dir():
        limits.append(shutil.disk_usage(_SHARED_MEMORY).free)
    return min(limits, default=0)


def _free_in_cgroups() -> Iterator[int]:
    """Yield what the memory limits of this process's cgroup and of those around it, of both versions, leave free."""
    if not _OWN_CGROUPS.is_file():
        return
    for line in _OWN_CGROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _CGROUPS / "memory" if controllers else _CGROUPS
        limit_name, usage_name = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        own = root / path.lstrip("/")
        for folder in (parent for parent in (own, *own.parents) if parent.is_relative_to(root)):
            limit, used = _number_in(folder / limit_name), _number_in(folder / usage_name)
            if limit is not None:
                yield max(0, limit - (used or 0) + _droppable_bytes(folder))


def _number_in(file: Path) -> int | None:
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None


def _droppable_bytes(cgroup: Path) -> int:
    """Return what a cgroup has in use for copies of files that the kernel gives back when memory is asked for."""
    file = cgroup / "memory.stat"
    lines = file.read_text().splitlines() if file.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))

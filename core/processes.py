"""The processes that train one detector together: who this one is, and what all of them know.

Gradients are summed, not averaged: losses are normalised by the sums of all processes, so that the sum of all
gradients is that of the whole batch. Without `join_processes` there is one process, and every function here returns
what it was given.
"""

from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from core.errors import MachineError, ProcessLost, UsageError
from core.network import interface_towards
from core.torchrun import num_processes_here, started_by_torchrun

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(hours=1)
"""How long a process waits for the others: the first one checks and scores all images while they wait."""
_TIME_TO_MEET = datetime.timedelta(minutes=10)
"""How long it looks for them at the start: they may be those of another job, or nobody at all."""
_BUCKET_NUMBERS = 8_000_000
"""Numbers that travel together: enough to fill a network, few enough to need no second copy of all gradients."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: of this process, from 0.
        world_size: how many there are.
        local_rank: of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """Return this process's device: of several CUDA devices the one with its number.

        Raises:
            UsageError: one device is named for all of them.
            MachineError: there are fewer devices than processes.
        """
        if self.world_size == 1 or wanted.type == "cpu":
            return wanted
        if str(wanted) != "cuda":
            raise UsageError(
                f"{self.world_size} processes cannot share {wanted}", where="--device", hint="--device cuda, or cpu"
            )
        if self.local_rank >= torch.cuda.device_count():
            raise MachineError(
                f"{self.local_rank + 1} processes or more, but {torch.cuda.device_count()} CUDA devices",
                where="--nproc",
                hint="start one process a device, or use --device cpu",
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes; whole numbers below 2**53 are added exactly."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with _lost_processes():
            dist.all_reduce(total)
        return total.tolist()

    def largest(self, value: int) -> int:
        """Return the largest value of all processes."""
        if self.world_size == 1:
            return value
        box = torch.tensor([value])
        with _lost_processes():
            dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return self.largest(int(flag)) > 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.largest(0)

    def broadcast(self, value: T) -> T:
        """Return the main process's value, whatever it is; the others' is ignored."""
        if self.world_size == 1:
            return value
        box = [value]
        with _lost_processes():
            dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: T) -> list[T] | None:
        """Return all values by rank in the main process, None in the others."""
        if self.world_size == 1:
            return [value]
        values: list[T] | None = [value] * self.world_size if self.is_main else None
        with _lost_processes():
            dist.gather_object(value, values)
        return values

    @contextmanager
    def first_of_machine(self) -> Iterator[None]:
        """Let one process of each machine go first, so that what it fetches is there for all others."""
        if self.local_rank > 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place; a process without one adds zero."""
        if self.world_size == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        self._reduce(gradients)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors their mean over all processes, in place; alone they are not even looked for."""
        if self.world_size == 1:
            return
        found = list(tensors)
        self._reduce(found)
        for tensor in found:
            tensor /= self.world_size

    def broadcast_state(self, module: nn.Module) -> None:
        """Give a module the main process's parameters and buffers, in place."""
        if self.world_size == 1:
            return
        with torch.no_grad(), _lost_processes():
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, src=0)

    def _reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one device by their sums over all processes, many in one transfer."""
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().flatten() for tensor in bucket])
            with _lost_processes():
                dist.all_reduce(flat)
            for tensor, total in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.detach().copy_(total.view_as(tensor))


ALONE = Processes()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > _BUCKET_NUMBERS or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


@contextmanager
def join_processes(wanted: torch.device, environment: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """Join the other processes that torchrun started, and leave them at the end; alone where there are none.

    Tensors travel by NCCL between CUDA devices, and by Gloo otherwise; numbers and objects always by Gloo.

    Args:
        wanted: the device that was asked for.
        environment: as torchrun makes it.

    Raises:
        UsageError: the environment is not torchrun's.
        MachineError: the processes do not find each other.
    """
    if not started_by_torchrun(environment):
        yield ALONE
        return
    try:
        processes = Processes(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except ValueError as error:
        raise UsageError(
            f"the environment is not torchrun's: {error}", where="RANK, WORLD_SIZE, LOCAL_RANK", hint="unset them"
        ) from error
    if not 0 <= processes.rank < processes.world_size:
        raise UsageError(
            f"rank {processes.rank} of {processes.world_size} processes", where="RANK, WORLD_SIZE", hint="unset them"
        )
    if processes.world_size == 1:
        yield processes
        return
    device = processes.device(wanted)
    _choose_network(processes, environment["MASTER_ADDR"])
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store = _meet(processes)
        dist.init_process_group(
            backend, store=store, rank=processes.rank, world_size=processes.world_size, timeout=_TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        raise MachineError(
            f"the processes did not find each other: {str(error).splitlines()[0]}",
            where=f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}",
            hint="check the network, or name another port",
        ) from error
    try:
        yield processes
    finally:
        dist.destroy_process_group()


def _choose_network(processes: Processes, main_address: str) -> None:
    """Let Gloo use the network that the main process is in.

    By itself it uses the one that this machine's own name stands for, which often is no network at all (127.0.1.1):
    processes of other machines would be looked for in vain.
    """
    if num_processes_here(processes.world_size) < processes.world_size and "GLOO_SOCKET_IFNAME" not in os.environ:
        name = interface_towards(main_address)
        if name is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name


def _meet(processes: Processes) -> Any:
    """Return the store that all processes share, once they have found each other.

    Raises:
        RuntimeError: they do not, within a while.
        ValueError: an address or port is none.
    """
    found: list[Any] = []

    def look() -> None:
        try:
            meeting = rendezvous("env://", processes.rank, processes.world_size, timeout=_TIME_TO_MEET)
            found.append(next(meeting)[0])
        except Exception as error:  # noqa: BLE001 (it is raised in the thread that waits)
            found.append(error)

    # PyTorch hears no signal while it looks, and waits for as long as whatever listens there says nothing.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(1.5 * _TIME_TO_MEET.total_seconds())
    store = found[0] if found else RuntimeError("what listens there does not answer")
    if isinstance(store, Exception):
        raise store
    store.set_timeout(_TIMEOUT)
    return store


@contextmanager
def _lost_processes() -> Iterator[None]:
    """Turn an error of a transfer, which is that another process is gone, into one that says so."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # PyTorch tells of a dead data worker at any line, so here too.
        if "DataLoader worker" in str(error):
            raise
        raise ProcessLost(f"another process of this run is gone: {str(error).splitlines()[0]}") from error

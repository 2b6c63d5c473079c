"""Batches that data workers read, in this order and in any number."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _BaseDataLoaderIter

from core.config.schema import DataConfig
from core.datasets.batches import Batch, EvalBatches, TrainBatches, collate
from core.datasets.dataset import DetectionDataset, Sample
from core.errors import DedetrError, MachineError


class _ReportingDataset(Dataset["Sample | DedetrError"]):
    """Returns an error of ours instead of raising it.

    PyTorch would raise it again from a message alone, with the worker's traceback in it and `where` and
    `hint` lost; as a value it travels whole.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Sample | DedetrError:
        try:
            return self._dataset[key]
        except DedetrError as error:
            return error


def _collate_or_report(samples: Sequence[Sample | DedetrError]) -> Batch | DedetrError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, DedetrError):
            return sample
        good.append(sample)
    batch = collate(good)
    worker = get_worker_info()
    if worker is not None:
        # PyTorch would do so in a thread of its own, where an error loses the batch: the parent waits for it forever.
        try:
            batch.share_memory()
        except RuntimeError as error:
            return _worker_error(f"data worker {worker.id} has no shared memory for a batch: {_first_line(error)}")
    return batch


def _start_worker(worker_id: int) -> None:
    torch.set_num_threads(1)
    sys.excepthook = _say_unless_parent_is_gone
    # Ctrl-C, the end of the terminal and the scheduler's SIGTERM and SIGUSR1 reach the whole process group. The parent
    # decides what to do, saves, and ends its workers; they also end by themselves when it is gone.
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where SIGTERM keeps its meaning
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _say_unless_parent_is_gone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error of a worker's thread, but not that the parent has hung up: it was killed, and that is no error."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


@contextmanager
def _sigterm_held_back() -> Iterator[None]:
    """Let workers that are forked now, and all threads that libraries start in them, begin without hearing SIGTERM."""
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_when_parent_says() -> None:
    """End this worker on a SIGTERM from its parent, which has given up waiting; leave those of others unheard."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _worker_error(message: str) -> MachineError:
    hint = "the machine may be short of memory or of /dev/shm: use fewer workers, or 0"
    return MachineError(message, where="data.num_workers", hint=hint)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip()


_DEAD_WORKER = re.compile(r"DataLoader worker \(pid|shared memory(\(shm\)| object)")


@contextmanager
def data_worker_errors() -> Iterator[None]:
    """Turn PyTorch's error about a dead data worker into a `MachineError`.

    PyTorch raises it from a signal handler, so at any line while workers run: wrap the loop, not only the
    loader's `next`.
    """
    try:
        yield
    except RuntimeError as error:
        if not _DEAD_WORKER.search(str(error)):
            raise
        raise _worker_error(f"a data worker died: {_first_line(error)}") from error


def _forget_half_made(error: OSError) -> None:
    """Let an iterator that was not finished go in silence: PyTorch would print a traceback about what it lacks."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        iterator = frame.f_locals.get("self")
        if isinstance(iterator, _BaseDataLoaderIter) and not hasattr(iterator, "_workers"):
            iterator._shutdown = True  # type: ignore[attr-defined]


class _Loader:
    """A DataLoader whose workers stay alive from epoch to epoch."""

    def __init__(
        self,
        dataset: DetectionDataset,
        batches: TrainBatches | EvalBatches,
        *,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self.dataset = dataset
        if dataset.cache is not None:
            dataset.cache.reserve()
        # More workers than batches would only wait.
        num_workers = min(num_workers, len(batches))
        self._loader: DataLoader[Sample | DedetrError] = DataLoader(
            _ReportingDataset(dataset),
            batch_sampler=batches,
            collate_fn=_collate_or_report,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_start_worker,
            # Without one of its own the loader would draw its workers' seed from the global random numbers,
            # and so change the dropout of a run that resumes in the middle of an epoch.
            generator=torch.Generator(),
        )

    @property
    def is_about_to_fork(self) -> bool:
        """Whether the next iteration starts workers."""
        return self._loader.num_workers > 0 and self._loader._iterator is None

    def _iterate(self) -> Iterator[Batch]:
        try:
            with data_worker_errors():
                batches = self._start()
                for batch in batches:
                    if isinstance(batch, DedetrError):
                        raise batch
                    yield batch
        except Exception:
            self.close()
            raise

    def _start(self) -> Iterator[Batch | DedetrError]:
        """Start the workers, where there are any and they do not run yet."""
        try:
            with _sigterm_held_back():
                return iter(self._loader)
        except OSError as error:
            _forget_half_made(error)
            raise _worker_error(f"the data workers cannot be started: {error.strerror or error}") from error

    def close(self) -> None:
        """End the workers at once; iterating again starts new ones.

        Otherwise they end when nothing refers to the loader any more. Where that is an exception's traceback,
        this is late and PyTorch waits for each of them in vain.
        """
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
            for worker in getattr(iterator, "_workers", ()):
                if worker.is_alive():  # it hears nothing: its disk is gone, say
                    worker.kill()


class TrainLoader(_Loader):
    """Batches of training, epoch by epoch.

    Args:
        dataset: what to train on.
        config: `batch_size`, `sample_repeat` and `num_workers` are used.
        seed: of the order; the augmentation has the data set's own.
        accumulate: micro-batches of this process in a step.
        rank: of this process.
        world_size: number of processes.
        pin_memory: put batches into page-locked memory, for CUDA.

    Raises:
        UsageError: there are no images, or fewer in a batch than processes and micro-batches.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        config: DataConfig,
        *,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self._batches = TrainBatches(
            len(dataset), config.batch_size, seed, rank, world_size, accumulate, config.sample_repeat
        )
        super().__init__(dataset, self._batches, num_workers=config.num_workers, pin_memory=pin_memory)

    def __len__(self) -> int:
        """Number of steps of a whole epoch."""
        return self._batches.num_steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Batch]]:
        """Yield this process's micro-batches of each step of an epoch (0, 1, ...), from a step on where a run resumes.

        Raises:
            DataError: an image cannot be read.
            MachineError: a data worker died.
        """
        self._batches.epoch = epoch
        self._batches.start_step = start_step
        micro_batches = self._iterate()
        while step := list(itertools.islice(micro_batches, self._batches.accumulate)):
            yield step


class EvalLoader(_Loader):
    """Batches of evaluation in the file's order; each image on exactly one rank.

    Args:
        dataset: what to evaluate on.
        config: `batch_size` and `num_workers` are used.
        rank: of this process.
        world_size: number of processes.
        pin_memory: put batches into page-locked memory, for CUDA.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        config: DataConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self._batches = EvalBatches(len(dataset), config.batch_size, rank, world_size)
        super().__init__(dataset, self._batches, num_workers=config.num_workers, pin_memory=pin_memory)

    def __len__(self) -> int:
        """Number of batches on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return self._iterate()

"""Batches that data workers read, in this order and in any number."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Dataset

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
    return collate(good)


def _start_worker(worker_id: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and the scheduler's SIGTERM reach the whole process group. The parent decides what to do, saves,
    # and ends its workers; they also end by themselves when it is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where SIGTERM keeps its meaning
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, daemon=True).start()


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
        text = str(error)
        if not _DEAD_WORKER.search(text):
            raise
        raise MachineError(
            f"a data worker died: {text.splitlines()[0]}",
            where="data.num_workers",
            hint="the machine may be short of memory or of /dev/shm: use fewer workers, or 0",
        ) from error


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

    def _iterate(self) -> Iterator[Batch]:
        try:
            with data_worker_errors():
                with _sigterm_held_back():
                    batches = iter(self._loader)
                for batch in batches:
                    if isinstance(batch, DedetrError):
                        raise batch
                    yield batch
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """End the workers at once; iterating again starts new ones.

        Otherwise they end when nothing refers to the loader any more. Where that is an exception's traceback,
        this is late and PyTorch waits for each of them in vain.
        """
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


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

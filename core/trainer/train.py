"""A run of training, from its folder to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from core.assembly import Assembly
from core.datasets.dataset import DetectionDataset
from core.datasets.loaders import data_worker_errors
from core.processes import ALONE, Processes
from core.trainer.device import reproducible
from core.trainer.failures import batch_norm_errors, out_of_memory_errors
from core.trainer.journal import Journal
from core.trainer.loggers import LoggedRun, LoggingReporter, open_writers
from core.trainer.reporter import (
    CombinedReporter,
    NullReporter,
    Reporter,
)
from core.trainer.run_folder import DatasetIdentity, RunFolder
from core.trainer.signals import StopSignals
from core.trainer.trainer import Trainer, TrainResult
from core.trainer.validation import Validation


def train(
    assembly: Assembly,
    train_dataset: DetectionDataset,
    validation: Validation | None,
    run: RunFolder | None,
    device: torch.device,
    dataset: DatasetIdentity,
    *,
    run_path: Path | None = None,
    command: Sequence[str] = (),
    reporter: Reporter | None = None,
    on_first_checkpoint: Callable[[], None] | None = None,
    resume: bool = False,
    override: bool = False,
    processes: Processes = ALONE,
) -> TrainResult:
    """Train a detector, evaluate it as it learns, and keep checkpoints.

    SIGINT, SIGTERM and SIGUSR1 to any of the processes save and stop the run before its next step; a second one stops
    it at once. An error in the middle of a run saves the last step that was made, as far as it can. On a CPU with the
    same number of threads, a run that was stopped or killed and resumed ends with the same bits as one that was not.

    Args:
        assembly: model, criterion and configuration; the model is moved to the device and trained.
        train_dataset: what to train on.
        validation: what to evaluate on; None: nothing.
        run: the folder of the run, empty or, to resume, with checkpoints; None in all processes but the main one.
        device: where to train.
        dataset: name and hashes of the data, for the manifest.
        run_path: where the run's folder is, for processes that have none.
        command: the words of the command line, for the manifest.
        reporter: is told what happens, in the main process.
        on_first_checkpoint: called once, when there is something to go on from.
        resume: go on from the newest whole checkpoint.
        override: resume although settings or data differ from the run's.
        processes: that train it together.

    Raises:
        UsageError: the training set is empty, or too small for so many processes; images and batch are too small for
            batch norm; settings or data differ from those of the run to resume.
        DataError: an image cannot be read.
        CheckpointError: the run to resume has no whole checkpoint, or is of another model or other classes.
        MachineError: out of memory, a checkpoint cannot be saved (the earlier ones are as they were), or another
            process is gone.
        DivergedError: a loss is not a finite number; the weights were not updated with it.
        Interrupted: a signal came, and the run was saved.
    """
    if run is None and run_path is None:
        raise ValueError("a process without a run folder needs to know where it is")
    path = run.path if run is not None else Path(str(run_path))
    reporter = reporter if reporter is not None and processes.is_main else NullReporter()
    with (
        reproducible(device),
        StopSignals() as signals,
        data_worker_errors(),
        out_of_memory_errors(assembly.config.data),
        batch_norm_errors(),
    ):
        journal = Journal(run, assembly, processes, reporter, on_first_checkpoint)
        trainer = Trainer(assembly, train_dataset, validation, path, device, journal, processes, reporter, signals)
        offset = 0
        if resume:
            offset = trainer.resume(dataset, override=override)
        if run is not None:
            run.describe(assembly.config, dataset, device, command, processes.world_size)
        with journal.open(offset), contextlib.closing(trainer), _loggers(run, trainer) as logging:
            trainer.reporter = CombinedReporter([reporter, logging])
            return trainer.run_to_end()


def _loggers(run: RunFolder | None, trainer: Trainer) -> contextlib.closing[LoggingReporter]:
    """Open the loggers that the configuration names, in the main process."""
    settings, warn = trainer.config.run, trainer.reporter.warning
    writers = {}
    if run is not None and settings.loggers:
        manifest = run.read_manifest() or {}
        config = trainer.config.model_dump()
        logged = LoggedRun(run.path, str(manifest.get("run_id")), trainer.state.step, config)
        writers = open_writers(settings.loggers, logged, warn)
    return contextlib.closing(LoggingReporter(writers, settings.log_every, warn))

"""What a run leaves behind: records and checkpoints, written by the main process alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from core.assembly import Assembly
from core.errors import CheckpointError
from core.models.weights import load_into, pack_weights
from core.processes import Processes
from core.trainer.checkpoint import Checkpoint, CheckpointFolder
from core.trainer.metrics_table import write_metrics_csv
from core.trainer.optimizer import load_optimizer_state
from core.trainer.records import Records
from core.trainer.reporter import CheckpointSaved, Reporter
from core.trainer.resume import check_same_data, check_same_run
from core.trainer.run_folder import DatasetIdentity, RunFolder
from core.trainer.state import TrainState
from core.trainer.step import Stepper


class Journal:
    """Writes a run's records and checkpoints in the main process, and nothing in the others.

    Args:
        run: the run's folder; None in all processes but the main one.
        assembly: what is trained.
        processes: that train it.
        reporter: is told what was saved.
        on_first_checkpoint: called once, when there is something to go on from.

    Attributes:
        saved: the state of the newest checkpoint; None before the first.
    """

    def __init__(
        self,
        run: RunFolder | None,
        assembly: Assembly,
        processes: Processes,
        reporter: Reporter,
        on_first_checkpoint: Callable[[], None] | None,
    ) -> None:
        self.run = run
        self.assembly = assembly
        self.processes = processes
        self.reporter = reporter
        self.saved: TrainState | None = None
        self._on_first_checkpoint = on_first_checkpoint
        self._records: Records | None = None
        self._checkpoints = CheckpointFolder(run.checkpoints, assembly.config.run.keep_checkpoints) if run else None

    def resume(self, stepper: Stepper, dataset: DatasetIdentity, *, override: bool) -> tuple[TrainState, int]:
        """Take over the newest whole checkpoint, in all processes.

        Args:
            stepper: gets its weights, moments and averages.
            dataset: that the run goes on with.
            override: see `check_same_run`.

        Returns:
            Where the run stands, and the length in bytes that the records had then.

        Raises:
            CheckpointError: there is none, or it is of another model or other classes.
            UsageError: settings or data differ, and are not overridden.
        """
        checkpoint: Checkpoint | None = None
        if self.run is not None and self._checkpoints is not None:
            self._checkpoints.clean()
            checkpoint = self._checkpoints.load_newest(self.reporter)
            check_same_run(checkpoint.weights, self.assembly.config, self.assembly.classes, override=override)
            check_same_data(self.run.read_manifest(), dataset, override=override)
        # Of several processes one reads the files.
        checkpoint = self.processes.broadcast(checkpoint)
        if checkpoint is None:
            raise ValueError("the main process has read no checkpoint")
        state, offset = _restore(checkpoint, self.assembly, stepper)
        if self._checkpoints is not None:
            self._checkpoints.restore_pointers(checkpoint.step, state.best_step)
        self._warn_of_threads(checkpoint.training.get("num_threads"), stepper.device)
        self.saved = TrainState.from_dict(state.to_dict())
        return state, offset

    def open(self, offset: int) -> contextlib.closing[Journal]:
        """Begin to write records behind `offset` bytes of those that stand; to be used with `with`.

        Raises:
            CheckpointError: there are fewer.
            MachineError: they cannot be written.
        """
        if self.run is not None:
            self._records = Records(self.run.metrics_file, offset)
        return contextlib.closing(self)

    def close(self) -> None:
        """End the records."""
        if self._records is not None:
            self._records.close()

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write a line of `metrics.jsonl`, and after an evaluation `metrics.csv`.

        Raises:
            MachineError: the disk is full.
            CheckpointError: somebody has made something else of the lines before.
        """
        if self._records is None or self.run is None:
            return
        self._records.write(kind, values)
        if kind == "eval":
            write_metrics_csv(self.run.metrics_file, self.run.metrics_table)

    def save(self, state: TrainState, stepper: Stepper) -> None:
        """Write a checkpoint of this very moment.

        Raises:
            MachineError: it cannot be written; earlier ones are as they were.
        """
        self.saved = TrainState.from_dict(state.to_dict())
        if self._checkpoints is None or self._records is None:
            return
        model = pack_weights(stepper.best_model.state_dict(), self.assembly.config.model_dump(), self.assembly.classes)
        training = {
            "optimizer": stepper.optimizer.state_dict(),
            "precision": stepper.precision.state_dict(),
            "state": state.to_dict(),
            "metrics_bytes": self._records.sync(),
            "num_threads": torch.get_num_threads(),
        }
        if stepper.average is not None:
            training |= {"average": stepper.average.state_dict(), "model": stepper.model.state_dict()}
        is_best = state.best_step == state.step
        folder = self._checkpoints.save(state.step, model, training, is_best=is_best)
        if self._on_first_checkpoint is not None:
            self._on_first_checkpoint()
            self._on_first_checkpoint = None
        self.reporter.checkpoint_saved(CheckpointSaved(folder, state.step, is_best))

    def save_if_changed(self, state: TrainState, stepper: Stepper) -> None:
        """Write a checkpoint unless the newest is of this moment."""
        saved = self.saved
        here = (state.step, state.epoch, state.batches_done)
        if saved is None or here != (saved.step, saved.epoch, saved.batches_done):
            self.save(state, stepper)

    def _warn_of_threads(self, num_threads: object, device: torch.device) -> None:
        if device.type == "cpu" and num_threads != torch.get_num_threads():
            self.reporter.warning(
                f"the run had {num_threads} threads and now has {torch.get_num_threads()}: its numbers may differ"
                " in the last digits from those of an unbroken run"
            )


def _restore(checkpoint: Checkpoint, assembly: Assembly, stepper: Stepper) -> tuple[TrainState, int]:
    """Give weights, moments and averages what a checkpoint holds; return its state and the length of its records."""
    training = checkpoint.training
    load_into(assembly.model, checkpoint.weights)
    try:
        if "model" in training:
            # `model.pt` holds the averages.
            assembly.model.load_state_dict(training["model"])
        if stepper.average is not None:
            # A run that had none so far begins one with its weights.
            stepper.average.load_state_dict(training.get("average") or {"model": assembly.model.state_dict()})
        load_optimizer_state(stepper.optimizer, training["optimizer"], assembly.config.optimizer)
        stepper.precision.load_state_dict(training["precision"])
        return TrainState.from_dict(training["state"]), int(training["metrics_bytes"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"does not fit: {str(error).splitlines()[0]}", where=str(checkpoint.folder)) from error

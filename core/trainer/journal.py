"""What a run leaves behind: records and checkpoints, written by the main process alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from core.assembly import Assembly
from core.errors import CheckpointError, MachineError
from core.models.weights import load_into, pack_weights
from core.processes import Processes
from core.trainer.checkpoint import Checkpoint, CheckpointFolder
from core.trainer.metrics_table import write_metrics_csv
from core.trainer.optimizer import load_optimizer_state
from core.trainer.pace import SavePace
from core.trainer.records import Records
from core.trainer.reporter import CheckpointSaved, Reporter
from core.trainer.resume import check_same_data, check_same_run
from core.trainer.run_folder import DatasetIdentity, RunFolder
from core.trainer.saving import BackgroundTask, copy_to_host
from core.trainer.state import TrainState
from core.trainer.step import Stepper


class Journal:
    """Writes a run's records and checkpoints in the main process, and nothing in the others.

    A checkpoint is copied in memory, and its files are written by a thread; one at a time.

    Args:
        run: the run's folder; None in all processes but the main one.
        assembly: what is trained.
        processes: that train it.
        reporter: is told what was saved.
        on_first_checkpoint: called once, when there is something to go on from.

    Attributes:
        saved: the state of the newest checkpoint, which may still be under way; None before the first.
        pace: says when the next one is due.
        has_failed: whether a checkpoint or a record could not be written.
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
        self._settings = settings = assembly.config.run
        self._checkpoints = CheckpointFolder(run.checkpoints, settings.keep_checkpoints) if run else None
        self.has_failed = False
        self._under_way: BackgroundTask[CheckpointSaved] | None = None
        self.pace = SavePace(settings.checkpoint_share, settings.checkpoint_minutes)

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
        # With other settings than the newest checkpoint has, the run is another one from here on.
        self.saved = None if override else TrainState.from_dict(state.to_dict())
        return state, offset

    def open(self, offset: int) -> contextlib.closing[Journal]:
        """Begin to write records behind `offset` bytes of those that stand; to be used with `with`.

        Raises:
            CheckpointError: there are fewer.
            MachineError: they cannot be written.
        """
        if self.run is not None:
            self._records = Records(self.run.metrics_file, offset)
        self.pace = SavePace(self._settings.checkpoint_share, self._settings.checkpoint_minutes)
        return contextlib.closing(self)

    def close(self) -> None:
        """Finish the checkpoint under way, and end the records.

        Raises:
            MachineError: the checkpoint could not be written.
        """
        try:
            self.finish_save()
        finally:
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
        try:
            self._records.write(kind, values)
            if kind == "eval":
                write_metrics_csv(self.run.metrics_file, self.run.metrics_table)
        except Exception:
            self.has_failed = True
            raise

    @property
    def is_due_between_steps(self) -> bool:
        """Whether the newest checkpoint is old enough for another one; always False where none is written."""
        return self._checkpoints is not None and self._under_way is None and self.pace.is_due_between_steps()

    def save(self, state: TrainState, stepper: Stepper) -> None:
        """Write a checkpoint of this very moment, in the background if the configuration says so.

        Raises:
            MachineError: it, or the one before, cannot be written; earlier ones are as they were.
        """
        began = time.monotonic()
        self._finish()
        self._begin(state, stepper, in_background=self._settings.background_saves)
        self.pace.saved(time.monotonic() - began)

    def save_if_changed(self, state: TrainState, stepper: Stepper, *, keep_earlier: bool = False) -> None:
        """Write a checkpoint unless the newest is of this moment, and wait for it.

        Args:
            state: where the run stands.
            stepper: has the weights, moments and averages.
            keep_earlier: remove no earlier checkpoint.

        Raises:
            MachineError: it cannot be written.
        """
        with contextlib.suppress(MachineError):  # of the one before: this one is another try
            self._finish()
        saved = self.saved
        here = (state.step, state.epoch, state.batches_done)
        if saved is None or here != (saved.step, saved.epoch, saved.batches_done):
            self._begin(state, stepper, in_background=False, keep_earlier=keep_earlier)

    def poll_save(self) -> None:
        """Tell of the checkpoint under way, if it is there now.

        Raises:
            MachineError: it could not be written.
        """
        if self._under_way is not None and self._under_way.is_done:
            self._finish()

    def finish_save(self) -> None:
        """Wait for the checkpoint under way, and tell of it.

        Raises:
            MachineError: it could not be written.
        """
        began = time.monotonic()
        self._finish()
        self.pace.waited(time.monotonic() - began)

    def _begin(self, state: TrainState, stepper: Stepper, *, in_background: bool, keep_earlier: bool = False) -> None:
        """Begin to write a checkpoint; wait for it unless it is in the background."""
        if self._checkpoints is not None:
            take = copy_to_host if in_background else _as_it_is
            work = self._make_save(self._checkpoints, state, stepper, take, keep_earlier)
            self._under_way = BackgroundTask(work)
            if not in_background:
                self._finish()
        self.saved = TrainState.from_dict(state.to_dict())

    def _finish(self) -> None:
        task = self._under_way
        if task is None:
            return
        task.wait()
        self._under_way = None
        try:
            event = task.result()
        except Exception:
            self.saved = None
            self.has_failed = True
            raise
        self.reporter.checkpoint_saved(event)

    def _make_save(
        self,
        checkpoints: CheckpointFolder,
        state: TrainState,
        stepper: Stepper,
        take: Callable[[Any], Any],
        keep_earlier: bool,
    ) -> Callable[[], CheckpointSaved]:
        """Take down all that a checkpoint of this moment holds; return the function that writes it."""
        records = self._records
        if records is None:
            raise ValueError("there are no records to save")
        weights = take(stepper.best_model.state_dict())
        model = pack_weights(weights, self.assembly.config.model_dump(), self.assembly.classes)
        training = {
            "optimizer": take(stepper.optimizer.state_dict()),
            "precision": stepper.precision.state_dict(),
            "state": state.to_dict(),
            "metrics_bytes": records.offset,
            "num_threads": torch.get_num_threads(),
        }
        if stepper.average is not None:
            # The averaged weights are those of `model.pt`.
            training["model"] = take(stepper.model.state_dict())
        step, is_best = state.step, state.best_step == state.step

        def write() -> CheckpointSaved:
            records.sync()
            folder: Path = checkpoints.save(step, model, training, is_best=is_best, keep_earlier=keep_earlier)
            if self._on_first_checkpoint is not None:
                self._on_first_checkpoint()
                self._on_first_checkpoint = None
            return CheckpointSaved(folder, step, is_best)

        return write

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
        if stepper.average is not None:
            # They are those of `model.pt`; a run that had none so far begins them with its weights.
            stepper.average.load_state_dict({"model": assembly.model.state_dict()})
        if "model" in training:
            assembly.model.load_state_dict(training["model"])
        load_optimizer_state(stepper.optimizer, training["optimizer"], assembly.config.optimizer)
        stepper.precision.load_state_dict(training["precision"])
        return TrainState.from_dict(training["state"]), int(training["metrics_bytes"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"does not fit: {str(error).splitlines()[0]}", where=str(checkpoint.folder)) from error


def _as_it_is(content: Any) -> Any:
    """Take what is written at once."""
    return content

"""The training loop: epochs of steps, an evaluation and a checkpoint after them, and a way to stop at any step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from core.annotations.records import AnnotationSet
from core.assembly import Assembly
from core.datasets.batches import EvalLoader, TrainLoader, data_worker_errors
from core.datasets.dataset import DetectionDataset
from core.device import place
from core.errors import CheckpointError, Interrupted
from core.evaluation.coco import CocoEvaluator, EvaluationResult
from core.evaluation.run import evaluate
from core.models.weights import load_into, pack_weights
from core.trainer.checkpoint import CheckpointFolder
from core.trainer.clock import Clock
from core.trainer.device import reproducible
from core.trainer.failures import out_of_memory_errors
from core.trainer.optimizer import load_optimizer_state
from core.trainer.records import Records
from core.trainer.reporter import CheckpointSaved, Evaluated, NullReporter, Reporter, RunStarted, StepDone
from core.trainer.resume import check_same_data, check_same_run
from core.trainer.run_folder import DatasetIdentity, RunFolder
from core.trainer.signals import StoppedAtOnce, StopSignals
from core.trainer.state import TrainState
from core.trainer.step import StepNumbers, Stepper


@dataclass(frozen=True)
class Validation:
    """What a run is evaluated on.

    Attributes:
        dataset: images, with the transform of evaluation.
        annotations: what should be found in them.
    """

    dataset: DetectionDataset
    annotations: AnnotationSet


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        run_folder: where everything was written.
        evaluation: of the last weights; None without validation.
        best_ap: the highest AP of all evaluations; None where there was nothing to measure.
        num_epochs: epochs done.
        num_steps: optimizer steps done.
        minutes: training time, over all sessions of the run.
    """

    run_folder: Path
    evaluation: EvaluationResult | None
    best_ap: float | None
    num_epochs: int
    num_steps: int
    minutes: float


def train(
    assembly: Assembly,
    train_dataset: DetectionDataset,
    validation: Validation | None,
    run: RunFolder,
    device: torch.device,
    dataset: DatasetIdentity,
    *,
    command: Sequence[str] = (),
    reporter: Reporter | None = None,
    on_first_checkpoint: Callable[[], None] | None = None,
    resume: bool = False,
    override: bool = False,
) -> TrainResult:
    """Train a detector, evaluate it as it learns, and keep checkpoints.

    SIGINT, SIGTERM and SIGUSR1 save and stop the run before its next step; a second one stops it at once. On a
    CPU with the same number of threads, a run that was stopped or killed and resumed ends with the same bits as
    one that was not.

    Args:
        assembly: model, criterion and configuration; the model is moved to the device and trained.
        train_dataset: what to train on.
        validation: what to evaluate on; None: nothing.
        run: the folder of the run, empty or, to resume, with checkpoints.
        device: where to train.
        dataset: name and hashes of the data, for the manifest.
        command: the words of the command line, for the manifest.
        reporter: is told what happens.
        on_first_checkpoint: called once, when there is something to go on from.
        resume: go on from the newest whole checkpoint.
        override: resume although settings or data differ from the run's.

    Raises:
        UsageError: the training set is empty; or settings or data differ from those of the run to resume.
        DataError: an image cannot be read.
        CheckpointError: the run to resume has no whole checkpoint, or is of another model or other classes.
        MachineError: out of memory, or a checkpoint cannot be saved; the earlier ones are as they were.
        DivergedError: a loss is not a finite number; the weights were not updated with it.
        Interrupted: a signal came, and the run was saved.
    """
    reporter = reporter or NullReporter()
    with (
        reproducible(device),
        StopSignals() as signals,
        data_worker_errors(),
        out_of_memory_errors(assembly.config.data),
    ):
        trainer = _Trainer(assembly, train_dataset, validation, run, device, dataset, reporter, signals)
        trainer.on_first_checkpoint = on_first_checkpoint
        offset = trainer.resume(override=override) if resume else 0
        run.describe(assembly.config, dataset, device, command)
        with contextlib.closing(trainer), Records(run.metrics_file, offset) as records:
            return trainer.run_to_end(records)


class _Trainer:
    """A run under way.

    Between any two calls of the reporter or of `StopSignals.poll`, `state`, weights, moments and records agree, so
    that the run can be saved there.
    """

    def __init__(
        self,
        assembly: Assembly,
        train_dataset: DetectionDataset,
        validation: Validation | None,
        run: RunFolder,
        device: torch.device,
        dataset: DatasetIdentity,
        reporter: Reporter,
        signals: StopSignals,
    ) -> None:
        config = assembly.config
        self.assembly = assembly
        self.config = config
        self.validation = validation
        self.run = run
        self.device = device
        self.dataset = dataset
        self.reporter = reporter
        self.signals = signals
        self.state = TrainState()
        self.clock = Clock()
        self.checkpoints = CheckpointFolder(run.checkpoints, config.run.keep_checkpoints)
        pin_memory = device.type == "cuda"
        self.train_loader = TrainLoader(train_dataset, config.data, seed=config.run.seed, pin_memory=pin_memory)
        self.eval_loader = EvalLoader(validation.dataset, config.data, pin_memory=pin_memory) if validation else None
        place(assembly.model, device)
        self.stepper = Stepper(assembly, device, run.path / "diverged")
        self.on_first_checkpoint: Callable[[], None] | None = None
        self._saved: TrainState | None = None

    @property
    def num_steps(self) -> int:
        return self.config.schedule.epochs * len(self.train_loader)

    def resume(self, *, override: bool) -> int:
        """Take over the newest whole checkpoint; return the length that the records had then."""
        self.checkpoints.clean()
        checkpoint = self.checkpoints.load_newest(self.reporter)
        check_same_run(checkpoint.weights, self.config, self.assembly.classes, override=override)
        manifest = self.run.read_manifest()
        check_same_data(manifest, self.dataset, override=override)
        load_into(self.assembly.model, checkpoint.weights)
        try:
            load_optimizer_state(self.stepper.optimizer, checkpoint.training["optimizer"], self.config.optimizer)
            self.state = TrainState.from_dict(checkpoint.training["state"])
            offset = int(checkpoint.training["metrics_bytes"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"does not fit: {str(error).splitlines()[0]}", where=str(checkpoint.folder)
            ) from error
        self.checkpoints.restore_pointers(checkpoint.step, self.state.best_step)
        if self.state.epoch >= self.config.schedule.epochs:
            self.reporter.warning(f"the run has done all of its {self.state.epoch} epochs; nothing is left to train")
        num_threads = checkpoint.training.get("num_threads")
        if self.device.type == "cpu" and num_threads != torch.get_num_threads():
            self.reporter.warning(
                f"the run had {num_threads} threads and now has {torch.get_num_threads()}: its numbers may differ"
                " in the last digits from those of an unbroken run"
            )
        self._saved = TrainState.from_dict(self.state.to_dict())
        return offset

    def run_to_end(self, records: Records) -> TrainResult:
        """Train the epochs that are left."""
        self.records = records
        self.clock = Clock()
        self._seconds_before = self.state.seconds
        self._announce()
        evaluation: EvaluationResult | None = None
        try:
            while self.state.epoch < self.config.schedule.epochs:
                self._train_epoch()
                evaluation = self._end_epoch()
            if evaluation is None and self.validation:
                evaluation = self._evaluate()
        except StoppedAtOnce:
            raise
        except Interrupted as stop:
            self._save_if_changed()
            raise Interrupted(
                f"{stop.message} after step {self.state.step} of {self.num_steps}, saved in {self.run.path}",
                exit_code=stop.exit_code,
                hint=f"go on with `dedetr train --resume --out {self.run.path}`",
            ) from None
        return TrainResult(
            run_folder=self.run.path,
            evaluation=evaluation,
            best_ap=self.state.best_ap,
            num_epochs=self.state.epoch,
            num_steps=self.state.step,
            minutes=self._seconds() / 60,
        )

    def close(self) -> None:
        """End the data workers."""
        self.train_loader.close()
        if self.eval_loader is not None:
            self.eval_loader.close()

    def _announce(self) -> None:
        self.reporter.run_started(
            RunStarted(
                run_folder=self.run.path,
                model=self.assembly.spec.name,
                device=str(self.device),
                num_train_images=len(self.train_loader.dataset),
                num_val_images=len(self.validation.dataset) if self.validation else 0,
                num_epochs=self.config.schedule.epochs,
                num_steps=self.num_steps,
                first_step=self.state.step,
            )
        )

    def _train_epoch(self) -> None:
        """Make the steps of the epoch that are left."""
        self.signals.poll()
        if self.state.batches_done >= len(self.train_loader):
            return
        self.stepper.train()
        batches = self.train_loader.epoch(self.state.epoch, self.state.batches_done)
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            waited = time.monotonic() - began
            numbers = self.stepper.step(batch, self.state.step, self.state.epoch)
            self.state.step += 1
            self.state.batches_done += 1
            self.state.window.add(numbers.loss, numbers.grad_norm, numbers.terms)
            self.clock.add_step(len(batch), time.monotonic() - began, waited)
            event = self._step_event(numbers)
            if self.state.step % self.config.run.log_every == 0 or self.state.batches_done == len(self.train_loader):
                self._record_window(numbers.learning_rate)
            self.reporter.step_done(event)
            self.signals.poll()

    def _step_event(self, numbers: StepNumbers) -> StepDone:
        steps_left = self.num_steps - self.state.step
        evaluations_left = self._evaluations_until(self.config.schedule.epochs)
        evaluations_left -= self._evaluations_until(self.state.epoch)
        return StepDone(
            epoch=self.state.epoch + 1,
            step=self.state.step,
            num_steps=self.num_steps,
            learning_rate=numbers.learning_rate,
            loss=numbers.loss,
            terms=numbers.terms,
            grad_norm=numbers.grad_norm,
            images_per_second=self.clock.images_per_second,
            data_wait_share=self.clock.data_wait_share,
            eta_seconds=self.clock.eta_seconds(steps_left, evaluations_left),
        )

    def _evaluations_until(self, epoch: int) -> int:
        """Return how many evaluations are due in the first `epoch` epochs."""
        if self.validation is None:
            return 0
        every, epochs = self.config.run.eval_every, self.config.schedule.epochs
        return epoch // every + int(epoch == epochs and epochs % every > 0)

    def _record_window(self, learning_rate: float) -> None:
        line: dict[str, Any] = {"epoch": self.state.epoch + 1, "step": self.state.step, "lr": learning_rate}
        line |= self.state.window.pop_means()
        line["time_images_per_s"] = self.clock.images_per_second
        line["time_data_wait_share"] = self.clock.data_wait_share
        self.records.write("train", line)
        self.clock.reset_window()

    def _end_epoch(self) -> EvaluationResult | None:
        """Evaluate and save, as far as it is due."""
        run, epoch = self.config.run, self.state.epoch + 1
        is_last = epoch == self.config.schedule.epochs
        evaluation: EvaluationResult | None = None
        if self.validation and (is_last or epoch % run.eval_every == 0):
            evaluation = self._evaluate()
        self.state.epoch, self.state.batches_done = epoch, 0
        is_best = evaluation is not None and self._record_evaluation(evaluation)
        if is_best or is_last or epoch % run.checkpoint_every == 0:
            self._save()
        return evaluation

    def _evaluate(self) -> EvaluationResult:
        if self.validation is None or self.eval_loader is None:
            raise ValueError("there is nothing to evaluate on")
        began = time.monotonic()
        self.reporter.evaluation_started(len(self.eval_loader))
        evaluator = CocoEvaluator(self.validation.annotations, self.assembly.classes)
        result = evaluate(
            self.assembly.model,
            self.assembly.postprocess,
            self.eval_loader,
            evaluator,
            self.device,
            on_batch=self._after_evaluation_batch,
        )
        self.signals.poll()
        self.clock.add_evaluation(time.monotonic() - began)
        return result

    def _after_evaluation_batch(self, _num_images: int) -> None:
        self.signals.poll()
        self.reporter.evaluation_batch_done()

    def _record_evaluation(self, evaluation: EvaluationResult) -> bool:
        is_best = self.state.offer(evaluation.stats["AP"])
        minutes = self._seconds() / 60
        per_class = [asdict(result) for result in evaluation.per_class]
        epoch, step, stats = self.state.epoch, self.state.step, evaluation.stats
        line: dict[str, Any] = {
            "epoch": epoch,
            "step": step,
            "stats": stats,
            "is_best": is_best,
            "per_class": per_class,
        }
        self.records.write("eval", {**line, "time_minutes": minutes})
        self.reporter.evaluated(Evaluated(epoch, step, stats, is_best, minutes))
        return is_best

    def _seconds(self) -> float:
        return self._seconds_before + self.clock.elapsed

    def _save_if_changed(self) -> None:
        saved = self._saved
        here = (self.state.step, self.state.epoch, self.state.batches_done)
        if saved is None or here != (saved.step, saved.epoch, saved.batches_done):
            self._save()

    def _save(self) -> None:
        """Write a checkpoint of this very moment."""
        self.state.seconds = self._seconds()
        assembly = self.assembly
        model = pack_weights(assembly.model.state_dict(), self.config.model_dump(), assembly.classes)
        training = {
            "optimizer": self.stepper.optimizer.state_dict(),
            "state": self.state.to_dict(),
            "metrics_bytes": self.records.sync(),
            "num_threads": torch.get_num_threads(),
        }
        is_best = self.state.best_step == self.state.step
        folder = self.checkpoints.save(self.state.step, model, training, is_best=is_best)
        self._saved = TrainState.from_dict(self.state.to_dict())
        if self.on_first_checkpoint is not None:
            self.on_first_checkpoint()
            self.on_first_checkpoint = None
        self.reporter.checkpoint_saved(CheckpointSaved(folder, self.state.step, is_best))

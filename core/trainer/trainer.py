"""The training loop: epochs of steps, an evaluation and a checkpoint after them, and a way to stop at any step."""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from core.assembly import Assembly
from core.datasets.dataset import DetectionDataset
from core.datasets.loaders import EvalLoader, TrainLoader
from core.device import place
from core.errors import DivergedError, Interrupted, ProcessLost
from core.evaluation.coco import EvaluationResult
from core.processes import Processes
from core.trainer.clock import Clock
from core.trainer.compilation import compile_model
from core.trainer.journal import Journal
from core.trainer.progress import Progress
from core.trainer.reporter import (
    Evaluated,
    Reporter,
    RunStarted,
    StepDone,
)
from core.trainer.run_folder import DatasetIdentity
from core.trainer.signals import StoppedAtOnce, StopSignals
from core.trainer.state import TrainState
from core.trainer.step import StepNumbers, Stepper
from core.trainer.validation import Validation, Validator


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        run_folder: where everything was written.
        evaluation: of the last weights; None without validation.
        best_ap: the highest AP of all evaluations; None where there was nothing to measure.
        num_epochs: epochs done; one that was cut short counts.
        num_steps: optimizer steps done.
        minutes: training time, over all sessions of the run.
    """

    run_folder: Path
    evaluation: EvaluationResult | None
    best_ap: float | None
    num_epochs: int
    num_steps: int
    minutes: float


class Trainer:
    """A run under way, in one of its processes.

    Between any two calls of the reporter or of `_poll`, `state`, weights, moments and records agree, so that the run
    can be saved there.
    """

    def __init__(
        self,
        assembly: Assembly,
        train_dataset: DetectionDataset,
        validation: Validation | None,
        path: Path,
        device: torch.device,
        journal: Journal,
        processes: Processes,
        reporter: Reporter,
        signals: StopSignals,
    ) -> None:
        config = assembly.config
        self.assembly = assembly
        self.config = config
        self.path = path
        self.device = device
        self.journal = journal
        self.processes = processes
        self.reporter = reporter
        self.signals = signals
        self.state = TrainState()
        self.clock = Clock()
        self.train_loader = TrainLoader(
            train_dataset,
            config.data,
            seed=config.run.seed,
            accumulate=config.optimizer.accumulate,
            rank=processes.rank,
            world_size=processes.world_size,
            pin_memory=device.type == "cuda",
        )
        self.validator = Validator(validation, assembly, device, processes) if validation else None
        self.progress = Progress(config.schedule, config.run.eval_every, len(self.train_loader))
        place(assembly.model, device)
        processes.broadcast_state(assembly.model)
        self.stepper = Stepper(assembly, device, path / "diverged", processes)
        if config.run.compile:
            compile_model(assembly.model)

    def resume(self, dataset: DatasetIdentity, *, override: bool) -> int:
        """Take over the newest whole checkpoint; return the length that the records had then."""
        self.state, offset = self.journal.resume(self.stepper, dataset, override=override)
        schedule, eval_every = self.config.schedule, self.config.run.eval_every
        self.progress = Progress(schedule, eval_every, len(self.train_loader), self.state)
        if self.progress.is_over(self.state):
            self.reporter.warning(f"the run is over after {self.state.epoch} epochs; nothing is left to train")
        return offset

    def run_to_end(self) -> TrainResult:
        """Train the epochs that are left."""
        self.clock = Clock()
        self._seconds_before = self.state.seconds
        evaluation: EvaluationResult | None = None
        try:
            self._announce()
            while not self.progress.is_over(self.state):
                self._train_epoch()
                evaluation = self._end_epoch()
            if evaluation is None and self.validator:
                evaluation = self._evaluate(self.validator, self.state.epoch)
            self.journal.finish_save()
        except StoppedAtOnce:
            raise
        except Interrupted as stop:
            self._save_if_changed()
            # Whoever ends first makes torchrun end the others, which may still be saving.
            with contextlib.suppress(ProcessLost):
                self.processes.wait()
            raise Interrupted(
                f"{stop.message} after step {self.state.step} of {self.progress.num_steps}, saved in {self.path}",
                exit_code=stop.exit_code,
                hint=f"go on with `dedetr train --resume --out {shlex.quote(str(self.path))}`",
            ) from None
        except Exception as error:
            self._save_what_was_reached(error)
            raise
        return TrainResult(
            run_folder=self.path,
            evaluation=evaluation,
            best_ap=self.state.best_ap,
            num_epochs=self.state.epoch + int(self.state.batches_done > 0),
            num_steps=self.state.step,
            minutes=self._seconds() / 60,
        )

    def close(self) -> None:
        """End the data workers."""
        self.train_loader.close()
        if self.validator is not None:
            self.validator.close()

    def _poll(self) -> None:
        self.signals.poll(self.processes)
        self.journal.poll_save()

    def _save(self) -> None:
        if self._can_be_saved():
            self.state.seconds = self._seconds()
            self.journal.save(self.state, self.stepper)

    def _can_be_saved(self) -> bool:
        """Tell whether there is something to go on from; an update may have made weights infinite."""
        if self.stepper.are_weights_finite():
            return True
        self.reporter.warning(
            f"weights are not finite after step {self.state.step}: they are not saved, and earlier checkpoints stay"
        )
        return False

    def _save_if_changed(self, *, keep_earlier: bool = False) -> None:
        self.state.seconds = self._seconds()
        self.journal.save_if_changed(self.state, self.stepper, keep_earlier=keep_earlier)

    def _save_what_was_reached(self, error: Exception) -> None:
        """Save after an error, unless it came in the middle of an update; should this fail too, it is said."""
        if self.state.step == 0 or self.stepper.is_updating or self.journal.has_failed:
            return
        try:
            if not self._can_be_saved():
                return
            # After a step that diverged the one before may be what went wrong.
            self._save_if_changed(keep_earlier=True)
        except Exception as failure:  # noqa: BLE001 (the error that is under way is the one to read)
            self.reporter.warning(f"the steps since the last checkpoint could not be saved: {failure}")
            return
        command = f"dedetr train --resume --out {shlex.quote(str(self.path))}"
        again = f"once the error is mended, go on with `{command}`"
        if isinstance(error, DivergedError):
            again = (
                f"`{command} --override --lr ...` goes on with another learning rate; should it diverge again at once, "
                "remove the newest checkpoint to go on from the one before"
            )
        self.reporter.warning(
            f"the run is saved as it was after step {self.state.step} of {self.progress.num_steps}: {again}"
        )

    def _announce(self) -> None:
        self.reporter.run_started(
            RunStarted(
                run_folder=self.path,
                model=self.assembly.spec.name,
                device=str(self.device),
                num_processes=self.processes.world_size,
                num_train_images=len(self.train_loader.dataset),
                num_val_images=len(self.validator.validation.dataset) if self.validator else 0,
                num_epochs=self.progress.num_epochs,
                num_steps=self.progress.num_steps,
                first_step=self.state.step,
            )
        )

    def _train_epoch(self) -> None:
        """Make the steps of the epoch that are left."""
        self._poll()
        self._prepare_to_fork(self.train_loader)
        self.stepper.train()
        steps = self.train_loader.epoch(self.state.epoch, self.state.batches_done)
        while not self.progress.is_epoch_done(self.state):
            began = time.monotonic()
            micro_batches = next(steps)
            waited = time.monotonic() - began
            numbers = self.stepper.step(micro_batches, self.state.step, self.state.epoch, self.progress.num_steps)
            event = self._count(numbers, time.monotonic() - began, waited)
            self.reporter.step_done(event)
            self._poll()
            if self.journal.is_due_between_steps and not self.progress.is_epoch_done(self.state):
                self._save()

    def _count(self, numbers: StepNumbers, seconds: float, waited_seconds: float) -> StepDone:
        """Take down that a step was made, which ends its update; return what is told of it."""
        state = self.state
        state.step += 1
        state.batches_done += 1
        state.num_skipped += numbers.was_skipped
        state.window.add(numbers.loss, None if numbers.was_skipped else numbers.grad_norm, numbers.terms)
        self.clock.add_step(numbers.num_images, seconds, waited_seconds)
        event = self._step_event(numbers)
        if state.step % self.config.run.log_every == 0 or self.progress.is_epoch_done(state):
            self._record_window(numbers.learning_rate)
        self.stepper.is_updating = False
        return event

    def _prepare_to_fork(self, loader: TrainLoader | EvalLoader) -> None:
        """Let workers that are about to be forked find no lock that the thread of a save has taken."""
        if loader.is_about_to_fork:
            self.journal.finish_save()

    def _step_event(self, numbers: StepNumbers) -> StepDone:
        steps_left, evaluations_left = self.progress.left(self.state)
        return StepDone(
            epoch=self.state.epoch + 1,
            step=self.state.step,
            num_steps=self.progress.num_steps,
            learning_rate=numbers.learning_rate,
            loss=numbers.loss,
            terms=numbers.terms,
            grad_norm=numbers.grad_norm,
            images_per_second=self.clock.images_per_second,
            data_wait_share=self.clock.data_wait_share,
            eta_seconds=self.clock.eta_seconds(steps_left, evaluations_left if self.validator else 0),
        )

    def _record_window(self, learning_rate: float) -> None:
        line: dict[str, Any] = {"epoch": self.state.epoch + 1, "step": self.state.step, "lr": learning_rate}
        line |= self.state.window.pop_means()
        if self.config.run.precision == "float16":
            line["num_skipped"] = self.state.num_skipped
        line["time_images_per_s"] = self.clock.images_per_second
        line["time_data_wait_share"] = self.clock.data_wait_share
        self.journal.record("train", line)
        self.clock.reset_window()

    def _end_epoch(self) -> EvaluationResult | None:
        """Evaluate and save, as far as it is due."""
        epoch, is_last = self.state.epoch + 1, self.progress.is_last_epoch(self.state)
        evaluation: EvaluationResult | None = None
        if self.validator and (is_last or epoch % self.config.run.eval_every == 0):
            evaluation = self._evaluate(self.validator, epoch)
        self.stepper.is_updating = True
        self.progress.close_epoch(self.state)
        is_best = evaluation is not None and self._record_evaluation(evaluation, epoch)
        self.stepper.is_updating = False
        stops = not is_last and self.progress.is_over(self.state)
        is_due = epoch % self.config.run.checkpoint_every == 0 and self.journal.pace.is_affordable()
        if is_best or is_last or stops or is_due:
            self._save()
        if stops:
            self.reporter.warning(f"stopped after {self.state.num_worse} evaluations without a better AP")
        return evaluation

    def _evaluate(self, validator: Validator, epoch: int) -> EvaluationResult:
        self._prepare_to_fork(validator.loader)
        began = time.monotonic()
        result = validator.run(self.stepper.best_model, self.reporter, self._poll, epoch, self.state.step)
        self.clock.add_evaluation(time.monotonic() - began)
        return result

    def _record_evaluation(self, evaluation: EvaluationResult, epoch: int) -> bool:
        is_best = self.state.offer(evaluation.stats["AP"])
        minutes = self._seconds() / 60
        per_class = [asdict(result) for result in evaluation.per_class]
        step, stats = self.state.step, evaluation.stats
        line: dict[str, Any] = {
            "epoch": epoch,
            "step": step,
            "stats": stats,
            "is_best": is_best,
            "per_class": per_class,
        }
        self.journal.record("eval", {**line, "time_minutes": minutes})
        self.reporter.evaluated(Evaluated(epoch, step, stats, is_best, minutes))
        return is_best

    def _seconds(self) -> float:
        return self._seconds_before + self.clock.elapsed

"""What a run tells whoever watches it, as it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class RunStarted:
    """Training is about to begin, or to go on.

    Attributes:
        run_folder: where everything is written.
        model: the model's name.
        device: as PyTorch writes it, such as `cuda:0`; that of the main process.
        num_processes: that train together.
        num_train_images: in the training set.
        num_val_images: 0 without validation.
        num_epochs: of the whole run.
        num_steps: of the whole run.
        first_step: steps done already; more than 0 where a run goes on.
    """

    run_folder: Path
    model: str
    device: str
    num_processes: int
    num_train_images: int
    num_val_images: int
    num_epochs: int
    num_steps: int
    first_step: int


@dataclass(frozen=True)
class StepDone:
    """The optimizer made a step.

    Attributes:
        epoch: which epoch, from 1.
        step: steps done.
        num_steps: of the whole run.
        learning_rate: that of the model without its backbone.
        loss: the weighted sum that was differentiated.
        terms: the unweighted terms by name.
        grad_norm: before clipping.
        images_per_second: over the steps since the last record.
        data_wait_share: share of that time that was spent waiting for images, 0..1.
        eta_seconds: until the run ends, evaluations included as far as one has been timed.
    """

    epoch: int
    step: int
    num_steps: int
    learning_rate: float
    loss: float
    terms: Mapping[str, float]
    grad_norm: float
    images_per_second: float
    data_wait_share: float
    eta_seconds: float


@dataclass(frozen=True)
class Evaluated:
    """The model was evaluated on the validation split.

    Attributes:
        epoch: epochs done.
        step: steps done.
        stats: COCO's twelve numbers by name; None where there is nothing to measure.
        is_best: whether AP is the highest so far.
        minutes: training time so far, over all sessions of the run.
    """

    epoch: int
    step: int
    stats: Mapping[str, float | None]
    is_best: bool
    minutes: float


@dataclass(frozen=True)
class PredictionsDrawn:
    """Detections of the evaluation just made were drawn on their images, for reporters that want pictures.

    Attributes:
        epoch: epochs done.
        step: steps done.
        pictures: each with a name that is its own and the same at every evaluation.
    """

    epoch: int
    step: int
    pictures: Sequence[tuple[str, Image.Image]]


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint was written.

    Attributes:
        path: its folder.
        step: steps done.
        is_best: whether it became the best.
    """

    path: Path
    step: int
    is_best: bool


class Reporter(Protocol):
    """Is told what happens. Called between steps, so it must be quick; what it raises ends the run."""

    @property
    def wants_pictures(self) -> bool:
        """Whether pictures are worth drawing; asked before each evaluation's are."""

    def run_started(self, event: RunStarted) -> None:
        """Training is about to begin, or to go on."""

    def step_done(self, event: StepDone) -> None:
        """The optimizer made a step."""

    def evaluation_started(self, num_batches: int) -> None:
        """The model is about to be evaluated on so many batches."""

    def evaluation_batch_done(self) -> None:
        """One of them has gone through the model."""

    def evaluated(self, event: Evaluated) -> None:
        """The numbers are there."""

    def predictions_drawn(self, event: PredictionsDrawn) -> None:
        """So are the pictures, if any reporter wants them."""

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        """A checkpoint was written."""

    def warning(self, message: str) -> None:
        """Something the user should know, though the run goes on."""


class NullReporter:
    """Says nothing."""

    @property
    def wants_pictures(self) -> bool:
        """No."""
        return False

    def run_started(self, event: RunStarted) -> None:
        """Ignore it."""

    def step_done(self, event: StepDone) -> None:
        """Ignore it."""

    def evaluation_started(self, num_batches: int) -> None:
        """Ignore it."""

    def evaluation_batch_done(self) -> None:
        """Ignore it."""

    def evaluated(self, event: Evaluated) -> None:
        """Ignore it."""

    def predictions_drawn(self, event: PredictionsDrawn) -> None:
        """Ignore it."""

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        """Ignore it."""

    def warning(self, message: str) -> None:
        """Ignore it."""


class CombinedReporter:
    """Tells several reporters, in their order."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = tuple(reporters)

    @property
    def wants_pictures(self) -> bool:
        """Whether one of them does."""
        return any(reporter.wants_pictures for reporter in self._reporters)

    def run_started(self, event: RunStarted) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.run_started(event)

    def step_done(self, event: StepDone) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.step_done(event)

    def evaluation_started(self, num_batches: int) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.evaluation_started(num_batches)

    def evaluation_batch_done(self) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.evaluation_batch_done()

    def evaluated(self, event: Evaluated) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.evaluated(event)

    def predictions_drawn(self, event: PredictionsDrawn) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.predictions_drawn(event)

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.checkpoint_saved(event)

    def warning(self, message: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.warning(message)

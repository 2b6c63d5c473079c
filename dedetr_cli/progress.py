"""Progress on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from dedetr_cli.output import print_note, print_warning, stderr

if TYPE_CHECKING:
    from core.api import CheckpointSaved, Evaluated, PredictionsDrawn, Reporter, RunStarted, StepDone

_SECONDS_BETWEEN_PLAIN_LINES = 10.0


class Counter(Protocol):
    """Is told how many of how many images are done."""

    def __call__(self, done: int, total: int) -> None:
        """Take the count."""


@contextmanager
def make_counter(verb: str) -> Iterator[Counter]:
    """Give a counter of images that shows a bar on a terminal, in the main process, and nothing elsewhere."""
    from core import api

    console = stderr()
    if not console.is_terminal or not api.is_main_process():
        yield lambda done, total: None
        return
    columns = (TextColumn(verb), BarColumn(), TaskProgressColumn(), _ImagesPerSecondColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(verb)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def make_byte_counter() -> Iterator[Callable[[int, int | None], None]]:
    """Give a counter of fetched bytes that shows a bar on a terminal, once there are any, and nothing elsewhere."""
    console = stderr()
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("fetched"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("fetched", total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


@contextmanager
def make_reporter() -> Iterator[Reporter]:
    """Give the reporter that fits where stderr goes."""
    console = stderr()
    if not console.is_terminal:
        yield PlainReporter()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield LiveReporter(progress)


class _ImagesPerSecondColumn(ProgressColumn):
    """How fast it is going, as far as that can be told yet."""

    def render(self, task: Task) -> Text:
        """Return the text of the column."""
        return Text("" if task.speed is None else f"{task.speed:.1f} images/s")


class PlainReporter:
    """Prints lines: at the first step, then every ten seconds, and at every event that is no step."""

    wants_pictures = False

    def __init__(self) -> None:
        self._last_line = -math.inf

    def run_started(self, event: RunStarted) -> None:
        """Print what is trained on what."""
        print_note(start_line(event))

    def step_done(self, event: StepDone) -> None:
        """Print the step, unless a line was printed just now."""
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_PLAIN_LINES or event.step == event.num_steps:
            self._last_line = now
            print_note(step_line(event))

    def evaluation_started(self, num_batches: int) -> None:
        """Say nothing; the numbers follow."""

    def evaluation_batch_done(self) -> None:
        """Say nothing; the numbers follow."""

    def evaluated(self, event: Evaluated) -> None:
        """Print AP."""
        print_note(evaluation_line(event))

    def predictions_drawn(self, event: PredictionsDrawn) -> None:
        """Say nothing; no pictures are wanted here."""

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        """Say nothing: it is what every user expects."""

    def warning(self, message: str) -> None:
        """Print the warning."""
        print_warning(message)


class LiveReporter:
    """Shows one bar for the run and one for an evaluation, and keeps the AP of every evaluation above them."""

    wants_pictures = False

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._run = progress.add_task("starting", total=None)
        self._evaluation = progress.add_task("evaluating", visible=False)

    def run_started(self, event: RunStarted) -> None:
        """Print what is trained on what."""
        print_note(start_line(event))
        self._progress.update(self._run, total=event.num_steps, completed=event.first_step)

    def step_done(self, event: StepDone) -> None:
        """Move the bar."""
        self._progress.update(self._run, completed=event.step, description=step_line(event))

    def evaluation_started(self, num_batches: int) -> None:
        """Show the bar of the evaluation."""
        self._progress.update(self._evaluation, total=num_batches, completed=0, visible=True)

    def evaluation_batch_done(self) -> None:
        """Move that bar."""
        self._progress.advance(self._evaluation)

    def evaluated(self, event: Evaluated) -> None:
        """Print AP, and hide that bar."""
        self._progress.update(self._evaluation, visible=False)
        print_note(evaluation_line(event))

    def predictions_drawn(self, event: PredictionsDrawn) -> None:
        """Say nothing; no pictures are wanted here."""

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        """Say nothing: it is what every user expects."""

    def warning(self, message: str) -> None:
        """Print the warning above the bars."""
        print_warning(message)


def start_line(event: RunStarted) -> str:
    """Say what is trained on what."""
    images = f"{event.num_train_images} images, {event.num_val_images} to validate"
    start = f", from step {event.first_step}" if event.first_step else ""
    steps = f"{event.num_epochs} epochs, {event.num_steps} steps{start}"
    where = event.device if event.num_processes == 1 else f"{event.device}, {event.num_processes} processes"
    return f"training {event.model} on {where}: {images}, {steps} -> {event.run_folder}"


def step_line(event: StepDone) -> str:
    """Say how a step went, how fast it is going, and when it will be over."""
    return (
        f"epoch {event.epoch} step {event.step}/{event.num_steps} loss {event.loss:.3f} "
        f"{event.images_per_second:.1f} images/s, waiting for data {event.data_wait_share:.0%}, "
        f"{duration(event.eta_seconds)} left"
    )


def evaluation_line(event: Evaluated) -> str:
    """Say how good the model is after an epoch."""
    numbers = "  ".join(f"{name} {_share(event.stats.get(name))}" for name in ("AP", "AP50", "AP75"))
    is_best = event.is_best and (event.stats.get("AP") or 0) > 0
    return f"epoch {event.epoch}: {numbers}{'  (best)' if is_best else ''}  after {event.minutes:.1f} min"


def duration(seconds: float) -> str:
    """Return `1 h 05 min`, `12 min` or `40 s`."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes >= 2 else f"{60 * minutes + rest} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

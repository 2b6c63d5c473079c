"""From the events of a run to the numbers and pictures of its loggers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping

from PIL import Image

from core.trainer.loggers.writer import RunWriter, describe
from core.trainer.reporter import Evaluated, NullReporter, PredictionsDrawn, StepDone
from core.trainer.state import LossWindow


class LoggingReporter(NullReporter):
    """Logs `train/...` every few steps, and `val/...` and `predictions/...` at every evaluation.

    Numbers of training are means over the steps since the ones before, in this session; one that is not finite is
    left out. (Lines of `metrics.jsonl` also end with each epoch, so that some of their means are over fewer steps.) A
    writer that fails is dropped with one warning, and the run goes on.

    Args:
        writers: by name.
        log_every: steps between two numbers of training; the last step has one too.
        warn: is told which writer was dropped, and why.
    """

    def __init__(self, writers: Mapping[str, RunWriter], log_every: int, warn: Callable[[str], None]) -> None:
        self._writers = dict(writers)
        self._log_every = log_every
        self._warn = warn
        self._window = LossWindow()

    @property
    def wants_pictures(self) -> bool:
        """Yes, as long as there is a writer."""
        return bool(self._writers)

    def step_done(self, event: StepDone) -> None:
        """Log loss, terms, learning rate, gradient norm and speed, every few steps."""
        grad_norm = event.grad_norm if math.isfinite(event.grad_norm) else None
        self._window.add(event.loss, grad_norm, event.terms)
        if event.step % self._log_every and event.step != event.num_steps:
            return
        means = self._window.pop_means()
        values = {
            "train/loss": means["loss"],
            "train/grad_norm": math.nan if means["grad_norm"] is None else means["grad_norm"],
            "train/lr": event.learning_rate,
            "train/images_per_second": event.images_per_second,
            "train/data_wait_share": event.data_wait_share,
            **{f"train/terms/{name}": value for name, value in means["terms"].items()},
        }
        self._scalars(event.step, values)

    def evaluated(self, event: Evaluated) -> None:
        """Log COCO's twelve numbers, as far as there is something to measure."""
        stats = {f"val/{name}": value for name, value in event.stats.items() if value is not None}
        self._scalars(event.step, {"val/epoch": float(event.epoch), **stats})

    def predictions_drawn(self, event: PredictionsDrawn) -> None:
        """Log the pictures."""
        for name, picture in event.pictures:
            self._image(event.step, f"predictions/{name}", picture)

    def close(self) -> None:
        """Close the writers; one that fails to is warned of."""
        self._tell(lambda writer: writer.close())
        self._writers.clear()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._tell(lambda writer: writer.scalars(step, finite))

    def _image(self, step: int, name: str, picture: Image.Image) -> None:
        self._tell(lambda writer: writer.image(step, name, picture))

    def _tell(self, action: Callable[[RunWriter], None]) -> None:
        for name in list(self._writers):
            self._tell_one(name, action)

    def _tell_one(self, name: str, action: Callable[[RunWriter], None]) -> None:
        """Do it with a writer, and drop the writer if it fails."""
        try:
            action(self._writers[name])
        except Exception as error:  # noqa: BLE001 (whatever it is, the run is worth more than its log)
            writer = self._writers.pop(name)
            self._warn(f"{name} failed, the run goes on without it: {describe(error)}")
            with contextlib.suppress(Exception):
                writer.close()

"""How fast a run is, and when it will end."""

from __future__ import annotations

import time


class Clock:
    """Times steps and evaluations of one session.

    Attributes:
        started: when the session began, in seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._num_steps = 0
        self._step_seconds = 0.0
        self._evaluation_seconds = 0.0
        self.reset_window()

    @property
    def elapsed(self) -> float:
        """Seconds since the session began."""
        return time.monotonic() - self.started

    @property
    def images_per_second(self) -> float:
        """Over the steps since the last `reset_window`."""
        return self._window_images / self._window_seconds if self._window_seconds else 0.0

    @property
    def data_wait_share(self) -> float:
        """Share of the time of these steps that was spent waiting for images, 0..1."""
        return self._window_wait / self._window_seconds if self._window_seconds else 0.0

    def reset_window(self) -> None:
        """Begin to measure speed anew."""
        self._window_images = 0
        self._window_seconds = 0.0
        self._window_wait = 0.0

    def add_step(self, num_images: int, seconds: float, wait_seconds: float) -> None:
        """Count a step; `wait_seconds` of its `seconds` were spent waiting for images."""
        self._num_steps += 1
        self._step_seconds += seconds
        self._window_images += num_images
        self._window_seconds += seconds
        self._window_wait += wait_seconds

    def add_evaluation(self, seconds: float) -> None:
        """Count an evaluation; the last one stands for those to come."""
        self._evaluation_seconds = seconds

    def eta_seconds(self, num_steps: int, num_evaluations: int) -> float:
        """Return how long so many steps and evaluations will take."""
        step_seconds = self._step_seconds / self._num_steps if self._num_steps else 0.0
        return num_steps * step_seconds + num_evaluations * self._evaluation_seconds

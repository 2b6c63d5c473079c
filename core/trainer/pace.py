"""When a checkpoint is due: often enough to lose little, seldom enough to cost little."""

from __future__ import annotations

import time
from collections.abc import Callable


class SavePace:
    """Spaces checkpoints, so that all saving of a session takes no more than a share of its time from training.

    What saving took is measured, not guessed: the first checkpoint is always allowed, and a further one when, with as
    long a save as the newest, the share is not exceeded.

    Args:
        share: of the time, 0..1.
        minutes: age of the newest checkpoint at which another is due between two steps.
        now: seconds of a clock that never goes back.

    Attributes:
        blocked_seconds: what saving has taken from training so far.
    """

    def __init__(self, share: float, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self.blocked_seconds = 0.0
        self._share = share
        self._min_age = minutes * 60
        self._now = now
        self._began = self._saved_at = now()
        self._newest_seconds = 0.0

    def is_affordable(self) -> bool:
        """Tell whether one more save keeps to the share."""
        return self.blocked_seconds + self._newest_seconds <= self._share * (self._now() - self._began)

    def is_due_between_steps(self) -> bool:
        """Tell whether the newest checkpoint is too old, and another one affordable."""
        return self._now() - self._saved_at >= self._min_age and self.is_affordable()

    def waited(self, seconds: float) -> None:
        """Count a wait for a save under way, in seconds."""
        self.blocked_seconds += seconds

    def saved(self, seconds: float) -> None:
        """Count a save that kept training waiting for so long, in seconds."""
        self.blocked_seconds += seconds
        self._newest_seconds = seconds
        self._saved_at = self._now()

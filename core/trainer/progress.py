"""How much of a run is done, and how much is left."""

from __future__ import annotations

from core.config.schema import ScheduleConfig
from core.trainer.state import TrainState


class Progress:
    """Counts steps and epochs of a run whose length is given in either.

    Args:
        schedule: how long.
        eval_every: epochs between evaluations.
        steps_per_epoch: optimizer steps of a whole epoch.

    Attributes:
        num_steps: optimizer steps of the whole run.
        num_epochs: epochs of the whole run; the last one is cut short where `schedule.steps` ends in it.
    """

    def __init__(self, schedule: ScheduleConfig, eval_every: int, steps_per_epoch: int) -> None:
        self.num_steps = schedule.steps or schedule.epochs * steps_per_epoch
        self.num_epochs = -(-self.num_steps // steps_per_epoch)
        self._eval_every = eval_every
        self._patience = schedule.patience

    def is_over(self, state: TrainState) -> bool:
        """Return whether all epochs are done, or the AP has not grown for too long."""
        has_stalled = self._patience is not None and state.num_worse >= self._patience
        return has_stalled or state.epoch >= self.num_epochs

    def is_last_epoch(self, state: TrainState) -> bool:
        """Return whether the epoch under way is the last."""
        return state.epoch + 1 >= self.num_epochs

    def left(self, state: TrainState) -> tuple[int, int]:
        """Return the steps and the evaluations that are still to come."""
        evaluations = self._evaluations_until(self.num_epochs) - self._evaluations_until(state.epoch)
        return self.num_steps - state.step, evaluations

    def _evaluations_until(self, epoch: int) -> int:
        """Return how many evaluations are due in the first `epoch` epochs."""
        return epoch // self._eval_every + int(epoch == self.num_epochs and epoch % self._eval_every > 0)

"""How much of a run is done, and how much is left."""

from __future__ import annotations

from core.config.schema import ScheduleConfig
from core.trainer.state import TrainState


class Progress:
    """Counts steps and epochs of a run whose length is given in either.

    Args:
        schedule: how long.
        eval_every: epochs between evaluations.
        steps_per_epoch: optimizer steps of a whole epoch, from here on.
        state: where the run stands; None at its beginning. Its epochs may have had other numbers of steps.

    Attributes:
        num_steps: optimizer steps of the whole run.
        num_epochs: epochs of the whole run; the last one is cut short where `schedule.steps` ends in it.
    """

    def __init__(
        self, schedule: ScheduleConfig, eval_every: int, steps_per_epoch: int, state: TrainState | None = None
    ) -> None:
        state = state or TrainState()
        of_whole_epochs = state.step - state.batches_done
        epochs_left = max(schedule.epochs - state.epoch, 0)
        self.num_steps = schedule.steps or of_whole_epochs + epochs_left * steps_per_epoch
        self.num_epochs = state.epoch + max(-(-(self.num_steps - of_whole_epochs) // steps_per_epoch), 0)
        self._ends_at_step = schedule.steps
        self._steps_per_epoch = steps_per_epoch
        self._eval_every = eval_every
        self._patience = schedule.patience

    def is_over(self, state: TrainState) -> bool:
        """Return whether all is done, the last evaluation too, or the AP has not grown for too long."""
        if self._patience is not None and state.num_worse >= self._patience:
            return True
        if self._ends_at_step is not None:
            return state.closed_step >= self._ends_at_step
        return state.epoch >= self.num_epochs

    def is_epoch_done(self, state: TrainState) -> bool:
        """Return whether the epoch under way has no step left, as it is whole or as the run ends in it."""
        return state.batches_done >= self._steps_per_epoch or self._ends_in_it(state)

    def is_last_epoch(self, state: TrainState) -> bool:
        """Return whether the run ends with the epoch under way, all of whose steps are done."""
        if self._ends_at_step is not None:
            return self._ends_in_it(state)
        return state.epoch + 1 >= self.num_epochs

    def close_epoch(self, state: TrainState) -> None:
        """Count the epoch under way as done; one that is cut short stays open, for a run that is made longer."""
        state.closed_step = state.step
        if state.batches_done >= self._steps_per_epoch:
            state.epoch, state.batches_done = state.epoch + 1, 0

    def left(self, state: TrainState) -> tuple[int, int]:
        """Return the steps and the evaluations that are still to come."""
        evaluations = self._evaluations_until(self.num_epochs) - self._evaluations_until(state.epoch)
        return self.num_steps - state.step, evaluations

    def _ends_in_it(self, state: TrainState) -> bool:
        return self._ends_at_step is not None and state.step >= self._ends_at_step

    def _evaluations_until(self, epoch: int) -> int:
        """Return how many evaluations are due in the first `epoch` epochs."""
        return epoch // self._eval_every + int(epoch == self.num_epochs and epoch % self._eval_every > 0)

from __future__ import annotations

import pytest

from core.trainer.clock import Clock
from core.trainer.state import LossWindow, TrainState


def test_best_is_the_highest_ap_and_the_earliest_of_equals() -> None:
    state = TrainState()
    told = []
    for step, ap in enumerate([None, 0.0, 0.2, 0.2, None, 0.1, 0.3], start=1):
        state.step = step
        told.append(state.offer(ap))
    assert told == [True, True, True, False, False, False, True]
    assert (state.best_ap, state.best_step) == (0.3, 7)


def test_nothing_to_measure_has_a_best_too() -> None:
    state = TrainState(step=4)
    assert state.offer(None)
    assert (state.best_ap, state.best_step) == (None, 4)
    state.step = 8
    assert not state.offer(None)


def test_window_gives_means_once() -> None:
    window = LossWindow()
    window.add(1.0, 4.0, {"a": 0.5})
    window.add(3.0, 0.0, {"a": 1.5})
    assert window.pop_means() == {"loss": 2.0, "grad_norm": 2.0, "terms": {"a": 1.0}}
    assert window == LossWindow()


def test_state_goes_through_plain_values() -> None:
    state = TrainState(epoch=2, batches_done=3, step=11, best_ap=0.25, best_step=8, seconds=1.5)
    state.window.add(1.0, 2.0, {"a": 3.0})
    assert TrainState.from_dict(state.to_dict()) == state
    with pytest.raises(TypeError):
        TrainState.from_dict({**state.to_dict(), "unknown": 1})


def test_clock_estimates_from_what_it_has_seen() -> None:
    clock = Clock()
    assert (clock.images_per_second, clock.data_wait_share, clock.eta_seconds(10, 2)) == (0.0, 0.0, 0.0)
    clock.add_step(4, 2.0, 0.5)
    clock.add_step(4, 2.0, 1.5)
    clock.add_evaluation(30.0)
    assert (clock.images_per_second, clock.data_wait_share) == (2.0, 0.5)
    assert clock.eta_seconds(10, 2) == pytest.approx(80.0)
    clock.reset_window()
    assert clock.images_per_second == 0.0
    assert clock.eta_seconds(10, 0) == pytest.approx(20.0)

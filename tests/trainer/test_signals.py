from __future__ import annotations

import signal
import threading
import time

import pytest

from core.errors import Interrupted
from core.processes import Processes
from core.trainer.signals import StoppedAtOnce, StopSignals


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_first_signal_waits_for_a_poll_and_a_second_does_not(number: signal.Signals, exit_code: int) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        signals.poll()
        signal.raise_signal(number)
        signal.raise_signal(number)  # the echo of the same wish
        with pytest.raises(Interrupted, match=number.name) as stopped:
            signals.poll()
        assert not isinstance(stopped.value, StoppedAtOnce)
        assert stopped.value.exit_code == exit_code
        time.sleep(0.15)
        with pytest.raises(StoppedAtOnce) as stopped:
            signal.raise_signal(number)
        assert stopped.value.exit_code == exit_code
    assert signal.getsignal(number) is before


def test_what_follows_a_warning_is_no_second_signal() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGUSR1)
        time.sleep(0.15)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            signals.poll()
        time.sleep(0.15)
        with pytest.raises(StoppedAtOnce):
            signal.raise_signal(signal.SIGTERM)


class OtherProcessWasTold(Processes):
    """Knows of a signal before it comes here."""

    def largest(self, value: int) -> int:
        return max(value, signal.SIGTERM)


def test_signal_that_another_process_told_of_may_still_come_itself() -> None:
    with StopSignals() as signals:
        with pytest.raises(Interrupted) as stopped:
            signals.poll(OtherProcessWasTold())
        assert not isinstance(stopped.value, StoppedAtOnce)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.15)
        with pytest.raises(StoppedAtOnce):
            signal.raise_signal(signal.SIGTERM)


def test_other_threads_go_without() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def use() -> None:
        with StopSignals() as signals:
            signals.poll()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [before]


def test_error_that_a_second_signal_was_made_into_is_not_what_is_seen() -> None:
    def write_a_file() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.15)
        try:
            signal.raise_signal(signal.SIGINT)
        except StoppedAtOnce:
            raise RuntimeError("PytorchStreamWriter failed writing file") from None

    with pytest.raises(StoppedAtOnce) as stopped, StopSignals():
        write_a_file()
    assert stopped.value.exit_code == 130

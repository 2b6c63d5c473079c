"""Signals that ask training to stop: noted when they come, acted upon where the state is whole."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn

from core.errors import SIGNAL_EXIT_CODES, Interrupted
from core.processes import ALONE, Processes
from core.streams import send_nowhere
from core.torchrun import agent, started_by_torchrun

# Wrappers such as `timeout` signal their child and then its whole group: one wish, two signals.
_ECHO_SECONDS = 0.1


class StoppedAtOnce(Interrupted):
    """A second signal came: nothing more is saved."""


class StopSignals:
    """Takes SIGINT, SIGTERM, SIGUSR1 and SIGHUP while it is entered, as far as they are not ignored.

    The first signal sets a flag, which `poll` turns into `Interrupted` where the caller can save. A second one
    raises `StoppedAtOnce` out of whatever runs. The end of the agent that started this process among others counts
    as SIGTERM. Outside the main thread signals cannot be taken, and nothing is changed.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._received_at = 0.0
        # torchrun's agent passes a signal on, after other processes may have told of it.
        self._echo_seconds = 2.0 if started_by_torchrun() else _ECHO_SECONDS
        self._agent = agent()
        self._stopped_at_once: StoppedAtOnce | None = None
        self._children_before: set[multiprocessing.process.BaseProcess] = set()
        self._terminals: list[int] = []

    def __enter__(self) -> StopSignals:
        self._process = os.getpid()
        self._children_before = set(multiprocessing.active_children())
        if threading.current_thread() is threading.main_thread():
            # What is ignored stays so: `nohup` and a shell's background jobs mean it.
            for number in SIGNAL_EXIT_CODES:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
            self._terminals = [descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
        # Code in C++ that was writing a file makes an error of its own of ours.
        if self._stopped_at_once is not None and error is not None and error is not self._stopped_at_once:
            raise self._stopped_at_once from error

    def poll(self, processes: Processes = ALONE) -> None:
        """Raise `Interrupted` if a signal came, to this process or another; all of them call this equally often."""
        if self._stopped_at_once is not None:
            raise self._stopped_at_once
        if self.received is None and self._agent not in (None, os.getppid()):
            # Nobody is left to end this process: it would train on, unseen, and keep the run's folder locked.
            self.received, self._received_at = signal.SIGTERM, time.monotonic()
        number = processes.largest(int(self.received or 0))
        if number:
            if self.received is None:
                # Whoever signals all processes reaches this one last: still one wish.
                self._received_at = time.monotonic()
            received = self.received = signal.Signals(number)
            raise Interrupted(f"stopped by {received.name}", exit_code=SIGNAL_EXIT_CODES[received])

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked data worker has inherited this handler: its parent decides
        if signal.Signals(number).name == "SIGHUP":
            self._leave_terminal()
        if self.received is None or (self.received.name == "SIGUSR1" and number != self.received):
            # Slurm's warning is followed by a SIGTERM when time is up: saving goes on, as long as it is let.
            self.received = signal.Signals(number)
            self._received_at = time.monotonic()
        elif signal.Signals(number).name == "SIGHUP":
            pass  # a shell sends one to its jobs, and the system another when the shell has gone
        elif time.monotonic() - self._received_at > self._echo_seconds:
            self._stop_at_once(signal.Signals(number))

    def _leave_terminal(self) -> None:
        """Let what is still to be said go nowhere: the terminal is gone, and writing to it would be an error."""
        send_nowhere(self._terminals)

    def _stop_at_once(self, second: signal.Signals) -> NoReturn:
        for number in self._previous:
            signal.signal(number, signal.SIG_DFL)
        # Data workers ignore the signals, and may be in the middle of a large image.
        for child in set(multiprocessing.active_children()) - self._children_before:
            # PyTorch raises a RuntimeError when it hears of it: here, while we wait, and not somewhere later.
            with contextlib.suppress(RuntimeError):
                child.kill()
                child.join()
        exit_code = SIGNAL_EXIT_CODES[self.received or second]
        self._stopped_at_once = StoppedAtOnce(
            f"stopped at once by a second signal ({second.name})", exit_code=exit_code
        )
        raise self._stopped_at_once

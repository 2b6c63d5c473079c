"""Signals that ask training to stop: noted when they come, acted upon where the state is whole."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

from core.errors import Interrupted

_T = TypeVar("_T")

EXIT_CODES: dict[signal.Signals, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):
    EXIT_CODES[signal.SIGUSR1] = 143


# Wrappers such as `timeout` signal their child and then its whole group: one wish, two signals.
_ECHO_SECONDS = 0.1


class StoppedAtOnce(Interrupted):
    """A second signal came: nothing more is saved."""


class StopSignals:
    """Takes SIGINT, SIGTERM and SIGUSR1 while it is entered.

    The first signal sets a flag, which `poll` turns into `Interrupted` where the caller can save. A second one
    raises `StoppedAtOnce` out of whatever runs. Outside the main thread signals cannot be taken, and nothing is
    changed.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._received_at = 0.0

    def __enter__(self) -> StopSignals:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def poll(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.received is not None:
            raise Interrupted(f"stopped by {self.received.name}", exit_code=EXIT_CODES[self.received])

    def polled(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield the items, polling before each and after the last."""
        self.poll()
        for item in items:
            self.poll()
            yield item
        self.poll()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked data worker has inherited this handler: its parent decides
        if self.received is None:
            self.received = signal.Signals(number)
            self._received_at = time.monotonic()
        elif time.monotonic() - self._received_at > _ECHO_SECONDS:
            name = signal.Signals(number).name
            raise StoppedAtOnce(f"stopped at once by a second signal ({name})", exit_code=EXIT_CODES[self.received])

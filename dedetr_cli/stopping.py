"""Signals that end a command: what is half made is taken away, and one line says which it was.

Training takes them itself while it runs, see `core.trainer.signals`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from core.errors import SIGNAL_EXIT_CODES, Interrupted

EXIT_CTRL_C = SIGNAL_EXIT_CODES[signal.SIGINT]

_received = [signal.SIGINT]


def interrupted() -> Interrupted:
    """Return what is said after a signal, where there is nothing to save."""
    number = _received[-1]
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    return Interrupted(f"stopped by {name}", exit_code=SIGNAL_EXIT_CODES[number])


@contextlib.contextmanager
def signals_as_ctrl_c(tell: Callable[[Interrupted], None]) -> Iterator[None]:
    """Raise KeyboardInterrupt for all these signals, which is what all code that makes files cleans up after.

    While modules are loaded the process ends at once instead, as C++ code in them may abort on an exception.

    Another of these may be entered in it, with a better way to tell.

    Args:
        tell: prints what is said then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            return  # a forked data worker has inherited this handler: its parent decides
        _received.append(signal.Signals(number))
        while frame is not None and frame.f_globals.get("__name__") != "importlib._bootstrap":
            frame = frame.f_back
        if frame is None:
            raise KeyboardInterrupt
        tell(interrupted())
        os._exit(SIGNAL_EXIT_CODES[_received[-1]])

    # What is ignored stays so: a shell lets its background jobs ignore Ctrl-C.
    heard = [number for number in SIGNAL_EXIT_CODES if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


def end_undisturbed() -> None:
    """Let signals change the exit code no more, as all is done and said; SIGTERM still ends what would hang."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNAL_EXIT_CODES:
            if number != signal.SIGTERM:
                signal.signal(number, signal.SIG_IGN)

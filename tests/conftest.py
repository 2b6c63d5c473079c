"""What all tests need."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from core.errors import SIGNAL_EXIT_CODES


@pytest.fixture(autouse=True)
def signals_are_heard() -> Iterator[None]:
    """Hear signals, and let commands hear them; put back what a command in this process has made of them.

    Background jobs of a shell (`make test &`) and what they start do not hear SIGINT.
    """
    before = {number: signal.getsignal(number) for number in SIGNAL_EXIT_CODES}
    for number in SIGNAL_EXIT_CODES:
        if before[number] is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in SIGNAL_EXIT_CODES:
        signal.signal(number, before[number])

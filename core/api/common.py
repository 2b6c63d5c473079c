"""What the functions of the door share: where runs are, and who is told what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

RUNS = Path("runs")
LATEST = RUNS / "latest"

Say = Callable[[str], None]
OnImages = Callable[[int, int], None]
"""Is told how many of how many images are done."""


def say_nothing(_message: str) -> None:
    """Take a note, and tell nobody."""


def count_nothing(_done: int, _total: int) -> None:
    """Take a count, and tell nobody."""

"""Standard streams that nobody reads any more."""

from __future__ import annotations

import os
from collections.abc import Iterable


def send_nowhere(descriptors: Iterable[int]) -> None:
    """Let what is written to file descriptors go nowhere from now on, and nothing be read from them."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)

"""This very command once more, in several processes."""

from __future__ import annotations

import sys


def run_in_processes(num_processes: int) -> None:
    """Run the command line in several processes on this machine, and wait for them.

    Raises:
        DedetrError: the first error of one of them, or what they said when a signal stopped them.
    """
    from core import api

    api.launch([sys.executable, "-m", "dedetr_cli", *sys.argv[1:]], num_processes=num_processes)

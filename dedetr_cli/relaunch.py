"""This very command once more, in several processes."""

from __future__ import annotations

import sys


def run_in_processes(num_processes: int) -> None:
    """Run the command line in several processes on this machine, and wait for them.

    Raises:
        SystemExit: a signal stopped them; they have said so.
        DedetrError: the first error of one of them.
    """
    from core import api

    code = api.launch([sys.executable, "-m", "dedetr_cli", *sys.argv[1:]], num_processes=num_processes)
    if code:
        raise SystemExit(code)

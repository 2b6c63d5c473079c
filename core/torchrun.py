"""What torchrun, or an agent like it, tells the processes that it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""All of them: job schedulers leave some in every environment."""

_LAUNCHED = "DEDETR_LAUNCHED"


def started_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this process is one of several that were started together."""
    return all(name in environment for name in VARIABLES)


def num_processes_here(num_processes: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return how many of a run's processes share this machine; all of them where nothing else is said."""
    text = environment.get("LOCAL_WORLD_SIZE", "") if started_by_torchrun(environment) else ""
    return min(num_processes, int(text)) if text.isdigit() else num_processes


def is_main_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this is the process that speaks: the only one, or the first of several."""
    return not started_by_torchrun(environment) or environment["RANK"] == "0"


def mark_as_launcher() -> None:
    """Let all processes that this one starts know that it speaks for them."""
    os.environ[_LAUNCHED] = str(os.getpid())


def was_launched() -> bool:
    """Tell whether a process that speaks for this one started it."""
    # The process that launches others has the variable too.
    return os.environ.get(_LAUNCHED, str(os.getpid())) != str(os.getpid())


def agent() -> int | None:
    """Return the number of the process that started this one among others, and ends it when one of them fails."""
    if not started_by_torchrun():
        return None
    # It may have gone before this process could ask for its parent.
    return int(os.environ[_LAUNCHED]) if was_launched() else os.getppid()

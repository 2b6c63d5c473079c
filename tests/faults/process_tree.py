"""Processes, and those that come from them, by what Linux says of them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, which another one with the same number is not.

    Attributes:
        pid: its number.
        started: when, in the system's clock ticks.
    """

    pid: int
    started: int

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        fields = _stat(self.pid)
        return fields is not None and fields[0] not in "ZX" and int(fields[19]) == self.started


def family(pid: int) -> set[Process]:
    """Return what is left of a process that leads a session, of its session, and of all that comes from these."""
    stats = {int(path.name): _stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = {each: fields for each, fields in stats.items() if fields is not None}
    members = {each for each, fields in found.items() if pid in (each, int(fields[3]))}
    while more := {each for each, fields in found.items() if int(fields[1]) in members} - members:
        members |= more
    return {Process(each, int(found[each][19])) for each in members}


def send(number: signal.Signals, members: Iterable[Process]) -> None:
    """Send a signal to those that live."""
    for member in members:
        if member.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, number)


def are_gone(members: Iterable[Process], seconds: float) -> bool:
    """Wait until all of them are gone, so long at most, and tell whether they are."""
    end = time.monotonic() + seconds
    while any(member.is_alive for member in members):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat behind the name: state, parent, group, session, ...; None: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None

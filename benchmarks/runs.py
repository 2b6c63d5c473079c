"""What the benchmarks share: real `dedetr train` commands, each in a process of its own, and what they record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FinishedRun:
    """A command that has ended well.

    Attributes:
        folder: of the run.
        seconds: wall time of the whole command.
        peak_mib: the most memory that any one of its processes held, in MiB.
    """

    folder: Path
    seconds: float
    peak_mib: float

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl` of a kind."""
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if row["kind"] == kind]


def train(folder: Path, arguments: Sequence[str]) -> FinishedRun:
    """Run `dedetr train` into a folder, which is replaced; its output goes to our stderr."""
    command = [sys.executable, "-m", "dedetr_cli", "train", *arguments, "--out", str(folder), "--overwrite"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return FinishedRun(folder, time.monotonic() - began, usage.ru_maxrss / 1024)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)

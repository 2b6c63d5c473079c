"""A run in its own process, with data workers, killed and told to stop at bad moments, and resumed each time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.trainer.comparison import assert_same_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

_WORKERS = '{"data": {"num_workers": 2}}'


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.trainer.tiny", str(folder), "--config", _WORKERS, *arguments]
    # A session of its own, so that signals can go to the whole group as a terminal's do.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], line: str, count: int = 1) -> None:
    assert process.stdout is not None
    for told in process.stdout:
        count -= told.strip() == line
        if count == 0:
            return
    assert process.stderr is not None
    pytest.fail(f"'{line}' did not come: {process.stderr.read()}")


def test_run_killed_again_and_again_ends_as_the_unbroken_one(tmp_path: Path, unbroken: Path) -> None:
    """SIGTERM at the first step and in an evaluation, SIGKILL between two steps and where a checkpoint is written."""
    folder = tmp_path / "run"
    with started(folder) as process:
        wait_for(process, "step 1")
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == 143
        assert "saved in" in process.stderr.read()
    with started(folder, "--resume") as process:
        wait_for(process, "evaluation batch", 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    with started(folder, "--resume") as process:
        wait_for(process, "step 6")
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    with started(folder, "--resume") as process:
        # After the last batch the evaluation is scored, and then comes the save.
        wait_for(process, "evaluation batch", 4)
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    with started(folder, "--resume") as process:
        assert process.wait(60) == 0, process.stderr.read()
    assert_same_run(folder, unbroken)


def test_second_signal_stops_at_once_and_saves_nothing_more(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(folder, "--rest-after", "5") as process:
        wait_for(process, "step 5")
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
        assert "second signal" in process.stderr.read()
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best", "last", "step-00000004"]

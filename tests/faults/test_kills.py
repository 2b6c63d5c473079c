"""Killed and told to stop at bad moments, and resumed; `python benchmarks/kill_loop.py` does so hundreds of times."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.kills import EVERYTHING_ON, Command, Desk, Wish, break_run, newest_step
from tests.trainer.comparison import assert_same_run
from tests.trainer.test_many_processes import process_of_rank

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

SHORT = [*EVERYTHING_ON, "--epochs", "2", "--sample-repeat", "2"]
"""Twelve steps."""
LONG = [*SHORT, "--epochs", "100"]
"""More than are waited for."""


def test_f40_killed_again_and_again_ends_as_the_unbroken_run(trained: Path, tmp_path: Path) -> None:
    """In a save, in removing what that has left, between steps, in an evaluation: alone, and with all its processes."""
    desk = Desk(trained, SHORT)
    unbroken = desk.start(tmp_path / "unbroken")
    wishes = [
        Wish("save", delay=0.02, whom="group", count=2),
        Wish("cleaning", whom="command"),
        Wish("steps", delay=0.3, whom="command"),
        Wish("evaluation", delay=0.1, whom="group"),
    ]
    left = iter(wishes)
    broken = break_run(desk, tmp_path / "run", lambda _: next(left, None))
    assert broken.problems == []
    assert [kill.wish for kill in broken.kills] == wishes
    assert broken.kills[0].moment.startswith("save")
    assert unbroken.process.wait(300) == 0, unbroken.said
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the tiny run of `tests.trainer`, which says what it does, with data workers."""
    workers = '{"data": {"num_workers": 2}}'
    with subprocess.Popen(
        [sys.executable, "-m", "tests.trainer.tiny", str(folder), "--config", workers, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
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


def wait_for_save(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait until a checkpoint is being written."""
    while not any(path.suffix == ".tmp" for path in (folder / "checkpoints").glob("step-*")):
        assert process.poll() is None
        time.sleep(0.001)


def require_saved(process: subprocess.Popen[str], exit_code: int) -> None:
    assert process.stderr is not None
    code, said = process.wait(120), process.stderr.read()
    assert code == exit_code, said
    assert said.count("saved in") == 1, said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    with started(folder) as process:
        assert process.wait(300) == 0
    return folder


def test_f41_told_to_stop_it_saves_wherever_it_is(unbroken: Path, tmp_path: Path) -> None:
    """At the first step, in an evaluation, in a save; the whole group or the process alone; with data workers."""
    folder = tmp_path / "run"
    with started(folder) as process:
        wait_for(process, "step 1")
        os.killpg(process.pid, signal.SIGTERM)
        require_saved(process, 143)
    assert newest_step(folder / "checkpoints") in (1, 2, 3)
    with started(folder, "--resume") as process:
        wait_for(process, "evaluation batch", 2)
        process.send_signal(signal.SIGUSR1)
        require_saved(process, 143)
    assert newest_step(folder / "checkpoints") == 4
    with started(folder, "--resume") as process:
        wait_for(process, "step 8")
        wait_for_save(process, folder)
        os.killpg(process.pid, signal.SIGINT)
        require_saved(process, 130)
    with started(folder, "--resume") as process:
        assert process.wait(120) == 0, process.stderr and process.stderr.read()
    assert_same_run(folder, unbroken)


def test_f42_a_second_signal_stops_at_once_and_saves_nothing_more(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(folder, "--rest-after", "5") as process:
        wait_for(process, "step 5")
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert "second signal" in process.stderr.read()
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best", "last", "step-00000004"]
    with started(folder, "--resume") as process:
        assert process.wait(120) == 0
    assert_same_run(folder, unbroken)


def test_f43_a_signal_to_one_process_of_two_stops_both_at_the_same_step(trained: Path, tmp_path: Path) -> None:
    """What is resumed then ends as an unbroken run does: `tests/trainer/test_many_processes.py`."""
    command = Desk(trained, LONG, num_processes=2).start(tmp_path / "run")
    assert command.wait_for(Wish("steps", delay=1.0)), command.said
    os.kill(process_of_rank(1, command.process.pid), signal.SIGTERM)
    assert command.process.wait(120) == 143, command.said
    assert_stopped_once(command)


def assert_stopped_once(command: Command) -> None:
    stopped = re.findall(r"stopped by SIGTERM after step (\d+) of", command.said)
    assert len(stopped) == 1, command.said
    assert "Traceback" not in command.said
    assert newest_step(command.checkpoints) == int(stopped[0])

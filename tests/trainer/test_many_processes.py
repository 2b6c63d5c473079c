"""Several processes, and several micro-batches, train as one process with one batch would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.trainer.records import read_records
from tests.test_processes import torchrun
from tests.trainer.comparison import assert_same_run, timeless
from tests.trainer.tiny import tiny_config, tiny_run

# Where parts of a batch are to equal the whole: no dropout, images of one size, no statistics of batches.
EXACT: dict[str, dict[str, Any]] = {
    "model": {"dropout": 0.0},
    "backbone": {"norm": "frozen_batch_norm"},
    "data": {"batch_size": 4, "augment": False},
    "optimizer": {"lr": 1e-4},
    "run": {"log_every": 1},
}
SIDE = 80


def run_many(folder: Path, processes: int, *arguments: str, **sections: dict[str, Any]) -> Path:
    config = json.dumps(sections)
    program = ["-m", "tests.trainer.tiny", folder, "--config", config, *arguments]
    done = torchrun(*program, processes=processes)
    assert done.returncode == 0, done.stderr
    return folder


def assert_close_runs(ours: Path, theirs: Path, tolerance: float) -> None:
    """Compare every line of the records: counts exactly, numbers within a share of themselves.

    AdamW divides each gradient by its own size, so that rounding grows from step to step: only the first steps are
    compared as closely as that.
    """
    lines = [[timeless(line) for line in read_records(run / "metrics.jsonl")] for run in (ours, theirs)]
    assert len(lines[0]) == len(lines[1])
    for our, their in zip(*lines, strict=True):
        assert (our["kind"], our["epoch"], our["step"]) == (their["kind"], their["epoch"], their["step"])
        if our["kind"] == "train":
            share = tolerance if our["step"] <= 3 else 100 * tolerance
            assert our["loss"] == pytest.approx(their["loss"], rel=share)
            assert our["terms"] == pytest.approx(their["terms"], rel=share, abs=share)
            assert our["grad_norm"] == pytest.approx(their["grad_norm"], rel=10 * share)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    tiny_run(folder, tiny_config(**EXACT), size=(SIDE, SIDE))
    return folder


@pytest.mark.parametrize("processes", [2, 3])
def test_f69_processes_equal_one_with_the_same_batch(one: Path, processes: int, tmp_path: Path) -> None:
    """Three processes share a batch of four unevenly."""
    many = run_many(tmp_path / "run", processes, "--side", str(SIDE), **EXACT)
    assert_close_runs(many, one, 1e-5)


def test_two_machines_equal_one(one: Path, tmp_path: Path) -> None:
    """Two agents, each with a process whose local rank is 0, that find each other as those of two machines do."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "two"]
    command += ["-m", "tests.trainer.tiny", str(tmp_path / "run"), "--side", str(SIDE), "--config", json.dumps(EXACT)]
    agents = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    for agent in agents:
        _, errors = agent.communicate(timeout=200)
        assert agent.returncode == 0, errors
    assert_close_runs(tmp_path / "run", one, 1e-5)


@pytest.mark.parametrize("model", ["dela-detr", "dela-conddetr"])
def test_micro_batches_equal_one_batch(model: str, tmp_path: Path) -> None:
    sections = {**EXACT, "model": {"name": model, "dropout": 0.0}}
    tiny_run(tmp_path / "one", tiny_config(**sections), size=(SIDE, SIDE))
    accumulating = {**sections, "optimizer": {**EXACT["optimizer"], "accumulate": 3}}
    tiny_run(tmp_path / "three", tiny_config(**accumulating), size=(SIDE, SIDE))
    assert_close_runs(tmp_path / "three", tmp_path / "one", 1e-5)


def test_parts_normalised_alone_would_differ(one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: with normalisers of its own each part's loss is another one."""
    from core.trainer.step import Stepper, _Totals

    def alone(stepper: Stepper, parts: list[Any]) -> _Totals:
        return _Totals(parts[0].normalisers, 4)

    monkeypatch.setattr(Stepper, "_totals", alone)
    accumulating = {**EXACT, "optimizer": {**EXACT["optimizer"], "accumulate": 2}}
    tiny_run(tmp_path / "run", tiny_config(**accumulating), size=(SIDE, SIDE))
    with pytest.raises(AssertionError):
        assert_close_runs(tmp_path / "run", one, 1e-3)


def test_f43_stopped_by_a_signal_to_one_process_and_resumed_ends_as_unbroken(tmp_path: Path) -> None:
    """With dropout, augmentation, batch statistics and repeated labels as they come."""
    unbroken = run_many(tmp_path / "unbroken", 2)
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "tests.trainer.tiny", str(folder)]
    command += ["--rest-after", "5", "--rest-seconds", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "step 5":
                break
        os.kill(process_of_rank(1, process.pid), signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert "saved in" in errors, errors
    # The process that heard it may have been waiting for the other already, which then hears of it a step later.
    assert {path.name for path in (folder / "checkpoints").glob("step-*")} & {"step-00000005", "step-00000006"}
    run_many(folder, 2, "--resume")
    assert_same_run(folder, unbroken)


def process_of_rank(rank: int, agent: int) -> int:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError, ValueError):
            continue
        if parent == agent and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise LookupError(f"no process of rank {rank}")

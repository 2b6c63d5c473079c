"""A folder in which a user has typed the commands, shared by all tests of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = [
    "--epochs", "1", "--batch-size", "16", "--short-side", "64", "--workers", "0", "--device", "cpu",
    "--set", "data.max_long_side=96", "--set", "model.hidden_dim=32", "--set", "model.num_decoder_layers=2",
    "--set", "model.feedforward_dim=32", "--set", "schedule.warmup_steps=0",
]  # fmt: skip
"""Flags that make a training run of seconds; the demo set's recipe gives the rest."""


def dedetr(
    *arguments: str | Path, cwd: Path, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the real command as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "dedetr_cli", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command and require exit code 0; with --json also that stdout is one document of that command."""
    done = dedetr(*arguments, cwd=cwd)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    if "--json" in arguments:
        document = json.loads(done.stdout)
        assert (document["schema_version"], document["command"]) == (1, arguments[0])
        assert "error" not in document
    return done


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo set in data/ and images/."""
    folder = tmp_path_factory.mktemp("demo")
    succeed("prepare-data", cwd=folder)
    return folder


@pytest.fixture(scope="session")
def trained(demo: Path) -> Path:
    """The same folder with a 5 % subset and a run on it in runs/tiny."""
    succeed("subsample", "--rate", "0.05", cwd=demo)
    succeed("train", "--model", "dela-detr", "--subset", "0.05", "--out", "runs/tiny", *TINY, cwd=demo)
    assert (demo / "runs" / "latest").resolve() == (demo / "runs" / "tiny").resolve()
    return demo

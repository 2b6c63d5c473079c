"""Whether two runs are the same to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.trainer.checkpoint import CheckpointFolder
from core.trainer.records import read_records
from core.trainer.reporter import NullReporter


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not key.startswith("time_")}


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Compare nested tensors and plain values exactly."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype, where
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for row, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(our, their, f"{where}/{row}")
    else:
        assert ours == theirs, where


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Compare the last checkpoints, which of them is best, and the records of two run folders."""
    lines = [[timeless(line) for line in read_records(run / "metrics.jsonl")] for run in (ours, theirs)]
    assert lines[0] == lines[1]
    folders = [CheckpointFolder(run / "checkpoints", 2) for run in (ours, theirs)]
    names = [sorted(path.name for path in folder.path.iterdir()) for folder in folders]
    assert names[0] == names[1]
    assert (folders[0].best or Path()).name == (folders[1].best or Path()).name
    checkpoints = [folder.load_newest(NullReporter()) for folder in folders]
    assert_same(dict(checkpoints[0].weights.state), dict(checkpoints[1].weights.state))
    training = [checkpoint.training for checkpoint in checkpoints]
    for content in training:
        content["state"].pop("seconds")
        # Lines hold times, which are not equally long.
        content.pop("metrics_bytes")
    assert_same(*training)

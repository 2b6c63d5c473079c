"""Whether two runs are the same to the last bit."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from core.models.weight_files import read_weight_file
from core.models.weights import read_weights
from core.trainer.checkpoint import MODEL_FILE, TRAINING_FILE, CheckpointFolder, find_damage
from core.trainer.pointers import pointed_to
from core.trainer.records import read_records
from core.trainer.reporter import NullReporter

_OF_THE_CLOCK = ("seconds",)
"""What a run's state knows of time."""


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
        assert ours == theirs, f"{where}: {ours} and {theirs}"


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Compare the records of two run folders, and their last and best checkpoints with all that is in them.

    Which other checkpoints there are the clock decides. Averaged weights, if there are, are in `model.pt`, and the raw
    ones in `training.pt`, with moments, scaler and counters.
    """
    lines = [[timeless(line) for line in read_records(run / "metrics.jsonl")] for run in (ours, theirs)]
    assert_same(lines[0], lines[1], "metrics.jsonl")
    assert_same(_timeless_table(ours / "metrics.csv"), _timeless_table(theirs / "metrics.csv"), "metrics.csv")
    for name in ("last", "best"):
        folders = [pointed_to(run / "checkpoints" / name) for run in (ours, theirs)]
        names = [folder.name if folder is not None else None for folder in folders]
        assert names[0] == names[1], f"{name} is {names[0]} and {names[1]}"
        if folders[0] is not None and folders[1] is not None:
            assert_same(_content(folders[0]), _content(folders[1]), name)
    newest = [CheckpointFolder(run / "checkpoints", 2).load_newest(NullReporter()).step for run in (ours, theirs)]
    assert newest[0] == newest[1], f"newest checkpoints {newest}"


def _content(checkpoint: Path) -> dict[str, Any]:
    """Return all of a checkpoint but what the clock has put there."""
    assert find_damage(checkpoint) is None, checkpoint
    weights = read_weights(checkpoint / MODEL_FILE)
    training = read_weight_file(checkpoint / TRAINING_FILE)
    for name in _OF_THE_CLOCK:
        training["state"].pop(name)
    # Lines hold times, which are not equally long.
    training.pop("metrics_bytes")
    return {"weights": dict(weights.state), "training": training}


def _timeless_table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [{name: value for name, value in row.items() if name != "minutes"} for row in rows]

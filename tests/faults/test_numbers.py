"""F56 to F61: numbers that are not finite, memory that is not there, and nothing to count.

Several processes, and each place where a number can go wrong: tests/trainer/test_divergence.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.errors import MachineError
from core.trainer.diverged import read_diverged_step
from core.trainer.failures import out_of_memory_errors
from tests.faults.desk import Desk
from tests.faults.running import GO_ON, SHORT, Runs
from tests.faults.shell import require_one_error, start
from tests.trainer.comparison import assert_same
from tests.trainer.tiny import tiny_config

FAR = ["--epochs", "20"]


def kept_ids(runs: Runs, step: int) -> set[int]:
    """Return the ids of the images of a step that was not made."""
    kept = read_diverged_step(runs.folder / f"run/diverged/step-{step:08d}.pt")
    return {image_id for part in kept.parts for image_id in part.batch.image_ids}


def records(runs: Runs) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (runs.folder / "run/metrics.jsonl").read_text().splitlines()]


def weights_and_moments(runs: Runs, step: int) -> dict[str, Any]:
    """Return those of a checkpoint."""
    folder = runs.folder / f"run/checkpoints/step-{step:08d}"
    files = [torch.load(folder / name, weights_only=True) for name in ("model.pt", "training.pt")]
    return {"weights": files[0]["model"], "moments": files[1]["optimizer"]["state"]}


def test_f56_a_loss_that_is_infinite_changes_nothing(runs: Runs) -> None:
    """What is wrong is a setting: without it, the run ends as if it had never been made."""
    before = weights_and_moments(runs, 4)
    code, _, said = runs.type(*GO_ON, "--set", "loss.class_weight=3e38")
    require_one_error(code, said, 6, "loss: the total is inf at step 5 (image ids ", "were not updated", "hint: ")
    assert all(f"{image_id}" in said for image_id in kept_ids(runs, 5))
    assert_same(weights_and_moments(runs, 4), before)
    runs.go_on(4, "--set", "loss.class_weight=1.0")
    diverged, ended = records(runs), weights_and_moments(runs, 6)
    shutil.rmtree(runs.folder / "run/checkpoints/step-00000006")
    assert [record["step"] for record in diverged if record["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    runs.go_on(4)
    assert_same(weights_and_moments(runs, 6), ended)


def test_f57_a_learning_rate_that_is_far_too_high(runs: Runs) -> None:
    """F56 as well. The weights that a step has ruined make costs that are not numbers in the next one."""
    code, _, said = runs.type(*GO_ON, *FAR, "--lr", "1e30")
    require_one_error(code, said, 6, "the matching cost is not a finite number", "at step 6 (image ids ")
    assert "the weights were not updated" in said
    assert "invalid numeric entries" not in said  # scipy's words
    assert all(f"{image_id}" in said for image_id in kept_ids(runs, 6))
    assert [record["step"] for record in records(runs)][-1] == 5
    # The last good state is of no use here, as is said; the one before is there.
    assert "remove the newest checkpoint" in said
    shutil.rmtree(runs.folder / "run/checkpoints/step-00000005")
    runs.go_on(4, "--lr", "1e-3")


def test_f58_steps_that_overflow_float16_are_counted_and_end_the_run(runs: Runs) -> None:
    """The run has 46 of 50 such steps in a row behind it."""

    def overflow(content: dict[str, Any]) -> dict[str, Any]:
        return content | {"precision": content["precision"] | {"num_skipped_in_a_row": 46}}

    runs.change("training.pt", overflow)
    small = ["--short-side", "16", "--set", "data.max_long_side=16"]
    flags = [*GO_ON, *FAR, *small, "--precision", "float16", "--set", "loss.class_weight=1e34"]
    code, _, said = runs.type(*flags, "--set", "run.eval_every=20")
    require_one_error(code, said, 6, "overflowed float16 in 50 steps in a row", "at step 8 (image ids ")
    counts = [record["num_skipped"] for record in records(runs) if "num_skipped" in record]
    assert counts == [1, 2, 3]
    before, after = (weights_and_moments(runs, step) for step in (4, 7))
    names = [name for name in before["weights"] if "running_" not in name and "num_batches" not in name]
    assert_same(*({name: each["weights"][name] for name in names} for each in (before, after)))
    assert_same(before["moments"], after["moments"])


# F59: memory

_LITTLE_MEMORY = """
import re, resource, sys
from pathlib import Path
import torch, torchvision, scipy.optimize, core.api, core.trainer.inputs  # what is loaded is not what is to run short
megabytes = int(sys.argv.pop(1))
taken = int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (taken + (megabytes << 20),) * 2)
from dedetr_cli.__main__ import main
main()
"""
LARGE = ["--short-side", "2000", "--set", "data.max_long_side=2700", "--batch-size", "5"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
def test_f59_a_host_without_memory(desk: Desk) -> None:
    flags = ["train", *SHORT, *LARGE, "--out", "run"]
    process = start("300", *flags, cwd=desk.folder, program=_LITTLE_MEMORY)
    _, said = process.communicate(timeout=300)
    words = ["data.batch_size 5, data.short_side 2000: out of memory: ", "you tried to allocate"]
    require_one_error(process.returncode, said, 5, *words, "--accumulate", "--batch-size", "--short-side")
    assert "training dela-detr" in said


@pytest.mark.parametrize("flags", [["--dry-run"], []], ids=["dry-run", "run"])
def test_f59_a_model_that_is_too_large(desk: Desk, flags: list[str]) -> None:
    words = ["train", *SHORT, "--out", "run", *flags, "--set", f"model.feedforward_dim={10**13}"]
    code, _, said = desk.run(*words)
    require_one_error(code, said, 5, "out of memory: ", "you tried to allocate")
    assert not (desk.folder / "run").exists()


def raise_as_a_worker() -> None:
    """PyTorch makes a new error of a worker's, with its traceback in it."""
    trace = "Original Traceback ...\nDefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    raise RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\n{trace}")


def raise_as_the_system() -> None:
    raise OSError(12, "Cannot allocate memory")


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (lambda: torch.empty(1 << 50), "you tried to allocate"),
        (lambda: bytearray(1 << 62), "the host has none left"),
        (raise_as_a_worker, "you tried to allocate 9 bytes"),
        (raise_as_the_system, "Cannot allocate memory"),
    ],
    ids=["torch", "python", "worker", "system"],
)
def test_f59_every_kind_of_failure_is_told(fail: Callable[[], object], reason: str) -> None:
    data = tiny_config().data
    with pytest.raises(MachineError, match="out of memory: ") as full, out_of_memory_errors(data):
        fail()
    assert reason in full.value.message
    for other in (RuntimeError("another shape"), FileNotFoundError(2, "gone")):
        with pytest.raises(type(other), match=str(other)[-4:]), out_of_memory_errors(data):
            raise other


# F60, F61: nothing found, and nothing to find


def test_f60_nothing_found_is_no_error(runs: Runs) -> None:
    """A detector always gives its best guesses; none of them is kept here. (In eval: tests/evaluation/)"""
    code, printed, said = runs.type("eval", "--checkpoint", "run", "--device", "cpu", "--json")
    assert code == 0, said
    assert json.loads(printed)["evaluation"]["stats"]["AP"] < 0.01
    code, printed, said = runs.type(
        "predict",
        "coco/val2017",
        "--checkpoint",
        "run",
        "--device",
        "cpu",
        "--threshold",
        "1",
        "--out",
        "vis",
        "--json",
    )
    assert code == 0, said
    assert json.loads(printed)["num_detections"] == 0
    assert json.loads((runs.folder / "vis/predictions.json").read_text()) == []
    assert (runs.folder / "vis/501.png").is_file()


def test_f61_a_val_split_without_boxes_has_no_numbers(desk: Desk) -> None:
    desk.edit(lambda content: content.update(annotations=[]), "val")
    code, printed, said = desk.run("train", *SHORT, "--out", "run", "--json")
    assert code == 0, said
    assert said.count("val: no boxes: there is nothing to measure") == 1
    result = json.loads(printed)
    assert set(result["evaluation"]["stats"].values()) == {None}
    assert result["best_ap"] is None
    assert "-1" not in (desk.folder / "run/metrics.csv").read_text()
    assert (desk.folder / "run/checkpoints/best").exists()
    assert "nothing to measure" in desk.accept("eval", "--checkpoint", "run")

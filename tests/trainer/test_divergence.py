"""A number that is not finite stops all processes before the update; also a command, which torchrun starts."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.config.schema import Config
from core.datasets.batches import Batch, collate
from core.device import place
from core.errors import DedetrError, DivergedError
from core.processes import ALONE, Processes, join_processes
from core.structures import ImageBatch, ModelOutput
from core.trainer.diverged import read_diverged_step
from core.trainer.precision import MAX_SKIPPED_IN_A_ROW
from core.trainer.replay import replay
from core.trainer.replay_report import ReplayReport
from core.trainer.step import Stepper
from tests.test_processes import torchrun
from tests.trainer.tiny import tiny_assembly, tiny_config, tiny_datasets

CPU = torch.device("cpu")
PARTS = {0: ((0, 1), (2, 3)), 1: ((4, 5), (6, 7))}
"""Images of the two micro-batches of each process; the ids begin at 100."""
FAULTS = {
    "cost": "matching cost is not a finite number",
    "loss": "loss_ce is inf, loss_ce_0 is inf",
    "gradient": "the norm of the gradients is nan (query_embed.weight)",
}


def make_stepper(
    folder: Path, processes: Processes, config: Config, indices_of_parts: Sequence[Sequence[int]]
) -> tuple[Stepper, list[Batch]]:
    """Return what makes steps, and this process's parts of a batch."""
    assembly = tiny_assembly(config)
    dataset, _ = tiny_datasets(folder / f"images-{processes.rank}", assembly)
    parts = [collate([dataset[(0, index)] for index in indices]) for indices in indices_of_parts]
    place(assembly.model, CPU)
    stepper = Stepper(assembly, CPU, folder / "diverged", processes)
    stepper.train()
    return stepper, parts


def spoil(stepper: Stepper, fault: str, part: Batch, times: int = 99) -> None:
    """Let something go wrong in the forward or backward pass of a part, as often as said."""
    is_its_turn = False

    def change(_module: Any, inputs: tuple[ImageBatch], output: ModelOutput) -> ModelOutput | None:
        nonlocal times, is_its_turn
        is_its_turn = times > 0 and torch.equal(inputs[0].pixels, part.images.pixels)
        times -= is_its_turn
        if not is_its_turn or fault == "gradient":
            return None
        logits = output.logits * 0
        if fault == "cost":
            return output._replace(logits=logits * torch.nan)
        # Probabilities of 0 and 1, whose logarithms are out of range.
        return output._replace(logits=logits + torch.tensor([3e38] + [-3e38] * (logits.shape[-1] - 1)))

    def change_gradient(gradient: torch.Tensor) -> torch.Tensor | None:
        return gradient * torch.nan if fault == "gradient" and is_its_turn else None

    stepper.model.register_forward_hook(change)
    stepper.model.query_embed.weight.register_hook(change_gradient)  # type: ignore[no-untyped-call]


def diverge(
    folder: Path, processes: Processes, fault: str, *, spoils: bool = True, times: int = 99
) -> tuple[DedetrError, Stepper]:
    """Make one step and another that cannot be made; return what it ended with.

    The second part of this process is spoilt. Weights, statistics, moments and averages must be as they were.
    """
    config = tiny_config(optimizer={"ema_decay": 0.9})
    stepper, parts = make_stepper(folder, processes, config, PARTS[processes.rank])
    stepper.step(parts, step=0, epoch=0, num_steps=9)
    if spoils:
        spoil(stepper, fault, parts[1], times)
    before = copy.deepcopy(what_an_update_changes(stepper))
    with pytest.raises(DedetrError) as stopped:
        stepper.step(parts, step=1, epoch=0, num_steps=9)
    torch.testing.assert_close(what_an_update_changes(stepper), before, rtol=0, atol=0)
    return stopped.value, stepper


def what_an_update_changes(stepper: Stepper) -> dict[str, Any]:
    assert stepper.average is not None
    return {
        "weights": stepper.model.state_dict(),
        "moments": stepper.optimizer.state_dict()["state"],
        "average": stepper.average.state_dict(),
    }


def replayed(path: Path) -> ReplayReport:
    kept = read_diverged_step(path)
    return replay(kept, kept.config, CPU)


@pytest.mark.parametrize("fault", FAULTS)
def test_f56_the_second_of_two_parts_is_named_and_kept(fault: str, tmp_path: Path) -> None:
    """F56, F57."""
    error, stepper = diverge(tmp_path, ALONE, fault)
    path = tmp_path / "diverged" / "step-00000002.pt"
    assert isinstance(error, DivergedError)
    assert FAULTS[fault] in error.message
    assert "at step 2 (image ids 102, 103)" in error.message
    assert f"`dedetr train --replay {path}`" in (error.hint or "")
    kept = read_diverged_step(path)
    (part,) = kept.parts
    assert part.batch.image_ids == (102, 103)
    assert len(set(part.batch.file_names)) == 2
    state = stepper.model.state_dict()
    assert state.keys() == kept.weights.state.keys()
    assert all(torch.equal(state[key], value) for key, value in kept.weights.state.items())
    assert (kept.step, kept.epoch, kept.rank, kept.world_size) == (1, 0, 0, 1)
    assert kept.reason in error.message
    # The model itself was in order: the same numbers, in the one case that came to some without a fault in them.
    report = replayed(path)
    assert not report.diverges
    assert report.parts[0].is_identical is {"cost": None, "loss": False, "gradient": True}[fault]


def test_a_fault_that_does_not_happen_again_keeps_all_parts(tmp_path: Path) -> None:
    error, _ = diverge(tmp_path, ALONE, "gradient", times=1)
    assert "the norm of the gradients is nan at step 2 (image ids 100, 101, 102, 103)" in error.message
    report = replayed(tmp_path / "diverged" / "step-00000002.pt")
    assert [part.image_ids for part in report.parts] == [(100, 101), (102, 103)]
    assert [part.is_identical for part in report.parts] == [True, True]
    assert not report.diverges
    norms = [part.grad_norm for part in report.parts]
    assert report.grad_norm not in (None, *norms)


def test_a_full_disk_does_not_hide_what_happened(tmp_path: Path) -> None:
    (tmp_path / "diverged").write_text("no folder")
    error, _ = diverge(tmp_path, ALONE, "loss")
    assert isinstance(error, DivergedError)
    assert "loss_ce is inf" in error.message
    assert "the step could not be kept: " in error.message
    assert "--replay" not in (error.hint or "")


def test_float16_given_up_keeps_the_scale_that_failed(tmp_path: Path) -> None:
    """F58. Gradients of 32 times the loss fit float32, and not float16 at the scale of 2^16 that it begins with."""
    config = tiny_config(run={"precision": "float16"}, loss={"class_weight": 32.0})
    stepper, parts = make_stepper(tmp_path, ALONE, config, [(0,)])
    stepper.precision.num_skipped_in_a_row = MAX_SKIPPED_IN_A_ROW - 1
    with pytest.raises(DivergedError, match="float16 in 50 steps in a row"):
        stepper.step(parts, step=0, epoch=0, num_steps=9)
    kept = read_diverged_step(tmp_path / "diverged" / "step-00000001.pt")
    assert kept.precision["scaler"]["scale"] == 65536
    report = replay(kept, kept.config, CPU)
    assert report.diverges
    assert report.parts[0].is_identical
    assert report.parts[0].gradients.not_finite
    assert "run.precision=float32" in (getattr(report.error(), "hint", None) or "")
    cured = kept.config.model_copy(update={"run": kept.config.run.model_copy(update={"precision": "float32"})})
    again = replay(kept, cured, CPU)
    assert not again.diverges
    assert again.parts[0].is_identical is None


def test_f56_a_fault_of_one_process_stops_both_before_the_update(tmp_path: Path) -> None:
    """A sum of gradients belongs to nobody: each process makes its own once more to find out whose it was."""
    done = torchrun("-m", "tests.trainer.test_divergence", tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    for fault, reason in FAULTS.items():
        said = [(tmp_path / fault / f"{rank}.txt").read_text() for rank in (0, 1)]
        assert reason in said[1]
        assert "at step 2 (image ids 106, 107)" in said[1]
        assert "another process of this run met a number that is not finite at step 2" in said[0]
        assert [path.name for path in (tmp_path / fault / "diverged").iterdir()] == ["step-00000002-rank-1.pt"]
    report = replayed(tmp_path / "gradient" / "diverged" / "step-00000002-rank-1.pt")
    assert (report.rank, report.num_processes) == (1, 2)
    # Dropout, and what losses are divided by, are of the whole step.
    assert report.parts[0].is_identical


def main() -> None:
    torch.set_num_threads(1)
    with join_processes(CPU) as processes:
        for fault in FAULTS:
            folder = Path(sys.argv[1], fault)
            error, _ = diverge(folder, processes, fault, spoils=processes.rank == 1)
            (folder / f"{processes.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main()

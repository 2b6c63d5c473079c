"""A number that is not finite stops all processes before the update; also a command, which torchrun starts."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from core.datasets.batches import Batch, collate
from core.device import place
from core.errors import DedetrError, DivergedError
from core.processes import ALONE, Processes, join_processes
from core.structures import ModelOutput
from core.trainer.step import Stepper
from tests.test_processes import torchrun
from tests.trainer.tiny import tiny_assembly, tiny_config, tiny_datasets

CPU = torch.device("cpu")
PARTS = {0: ((0, 1), (2, 3)), 1: ((4, 5), (6, 7))}
"""Images of the two micro-batches of each process; the ids begin at 100."""
FAULTS = {
    "cost": "matching cost is not a finite number",
    "loss": "loss_ce is inf, loss_ce_0 is inf",
    "gradient": "the norm of the gradients is nan",
}


def spoil(stepper: Stepper, fault: str, forward: int) -> None:
    """Let something go wrong in a forward pass, counted from 1, or in its backward pass."""
    done = 0

    def change(module: Any, inputs: Any, output: ModelOutput) -> ModelOutput | None:
        nonlocal done
        done += 1
        if done != forward or fault == "gradient":
            return None
        logits = output.logits * 0
        if fault == "cost":
            return output._replace(logits=logits * torch.nan)
        # Probabilities of 0 and 1, whose logarithms are out of range.
        return output._replace(logits=logits + torch.tensor([3e38] + [-3e38] * (logits.shape[-1] - 1)))

    def change_gradient(gradient: torch.Tensor) -> torch.Tensor | None:
        return gradient * torch.nan if fault == "gradient" and done == forward else None

    stepper.model.register_forward_hook(change)
    stepper.model.query_embed.weight.register_hook(change_gradient)


def diverge(folder: Path, processes: Processes, fault: str, forward: int | None) -> tuple[DedetrError, Batch]:
    """Make one step and another that cannot be made; return what it ended with, and the part to blame.

    Weights, moments and averages must be as they were.
    """
    assembly = tiny_assembly(tiny_config(optimizer={"ema_decay": 0.9}))
    dataset, _ = tiny_datasets(folder / f"images-{processes.rank}", assembly)
    parts = [collate([dataset[(0, index)] for index in indices]) for indices in PARTS[processes.rank]]
    place(assembly.model, CPU)
    stepper = Stepper(assembly, CPU, folder / "diverged", processes)
    stepper.train()
    if forward is not None:
        spoil(stepper, fault, forward)
    stepper.step(parts, step=0, epoch=0, num_steps=9)
    before = copy.deepcopy(what_an_update_changes(stepper))
    with pytest.raises(DedetrError) as stopped:
        stepper.step(parts, step=1, epoch=0, num_steps=9)
    torch.testing.assert_close(what_an_update_changes(stepper), before, rtol=0, atol=0)
    return stopped.value, parts[1]


def what_an_update_changes(stepper: Stepper) -> dict[str, Any]:
    assert stepper.average is not None
    return {
        "weights": dict(stepper.model.named_parameters()),
        "moments": stepper.optimizer.state_dict()["state"],
        "average": stepper.average.state_dict(),
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_the_second_of_two_parts_is_named_and_kept(fault: str, tmp_path: Path) -> None:
    error, part = diverge(tmp_path, ALONE, fault, forward=4)
    assert isinstance(error, DivergedError)
    assert FAULTS[fault] in error.message
    assert f"at step 2 (image ids {part.image_ids[0]}, {part.image_ids[1]})" in error.message
    kept = torch.load(tmp_path / "diverged" / "step-00000002.pt", weights_only=True)
    assert tuple(kept["image_ids"]) == part.image_ids
    assert torch.equal(kept["pixels"], part.images.pixels)


def test_a_fault_of_one_process_stops_both_before_the_update(tmp_path: Path) -> None:
    """F56. A sum of gradients belongs to nobody: the main process keeps its part then."""
    done = torchrun("-m", "tests.trainer.test_divergence", tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    for fault, reason in FAULTS.items():
        said = [(tmp_path / fault / f"{rank}.txt").read_text() for rank in (0, 1)]
        kept = [path.name for path in (tmp_path / fault / "diverged").iterdir()]
        finder, ids = (0, "102, 103") if fault == "gradient" else (1, "106, 107")
        assert reason in said[finder]
        assert f"at step 2 (image ids {ids})" in said[finder]
        assert "another process of this run met a number that is not finite at step 2" in said[1 - finder]
        assert kept == ["step-00000002.pt" if finder == 0 else "step-00000002-rank-1.pt"]


def main() -> None:
    torch.set_num_threads(1)
    with join_processes(CPU) as processes:
        for fault in FAULTS:
            folder = Path(sys.argv[1], fault)
            error, _ = diverge(folder, processes, fault, forward=4 if processes.rank == 1 else None)
            (folder / f"{processes.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main()

"""What several processes add up, know and wait for, in real ones that torchrun's agent starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from core.errors import UsageError
from core.network import interface_towards
from core.processes import ALONE, Processes, join_processes
from core.torchrun import is_main_process, started_by_torchrun

PROGRAM = """
import json, sys, torch
from pathlib import Path
from torch import nn
from core.processes import join_processes

with join_processes(torch.device("cpu")) as processes:
    rank = processes.rank
    torch.manual_seed(rank)
    layer, norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
    processes.broadcast_state(layer)
    norm.running_mean.fill_(rank)
    layer.bias.requires_grad_(False)
    if rank != 1:  # this one had nothing to learn from
        layer.weight.grad = torch.full((2, 3), 1.0 + rank)
    processes.sum_gradients(layer.parameters())
    processes.average([norm.running_mean, norm.running_var])
    answers = {
        "world_size": processes.world_size,
        "sum": processes.sum([rank, 2**52 + 1 if rank == 0 else 0]),
        "largest": processes.largest(rank),
        "any": [processes.any(rank == 2), processes.any(False)],
        "broadcast": processes.broadcast({"path": Path("here"), "rank": rank})["rank"],
        "gathered": processes.gather(rank * 10),
        "weight": layer.weight.tolist(),
        "gradient": layer.weight.grad.tolist(),
        "has_bias_gradient": layer.bias.grad is not None,
        "mean": norm.running_mean.tolist(),
    }
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(answers))
"""


def torchrun(*arguments: str | Path, processes: int, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python program under the real torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd)


def test_three_processes_agree(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = torchrun(program, tmp_path, processes=3, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    for answer in answers:
        assert answer["world_size"] == 3
        assert answer["sum"] == [3, 2**52 + 1]
        assert answer["largest"] == 2
        assert answer["any"] == [True, False]
        assert answer["broadcast"] == 0
        assert answer["weight"] == answers[0]["weight"]
        assert answer["gradient"] == [[4.0] * 3] * 2  # 1 + nothing + 3
        assert not answer["has_bias_gradient"]
        assert answer["mean"] == [1.0, 1.0]
    assert [answer["gathered"] for answer in answers] == [[0, 10, 20], None, None]


def test_alone_everything_is_as_it_was() -> None:
    layer = nn.Linear(2, 2)
    ALONE.sum_gradients(layer.parameters())
    assert layer.weight.grad is None
    assert ALONE.sum([1.5, 2]) == [1.5, 2]
    assert ALONE.gather("x") == ["x"]
    assert ALONE.is_main
    assert ALONE.device(torch.device("cpu")) == torch.device("cpu")


def test_f68_variables_of_somebody_else_do_not_count_as_torchrun() -> None:
    """A cluster's job scheduler leaves some of them in every environment."""
    assert not started_by_torchrun({"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "3"})
    assert is_main_process({"RANK": "3", "WORLD_SIZE": "8"})
    with join_processes(torch.device("cpu"), {"WORLD_SIZE": "8", "LOCAL_RANK": "0"}) as processes:
        assert processes == ALONE
    wrong = dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), "many")
    with pytest.raises(UsageError, match="not torchrun's"), join_processes(torch.device("cpu"), wrong):
        pass


def test_one_process_of_torchrun_needs_no_others() -> None:
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    with join_processes(torch.device("cpu"), names) as processes:
        assert processes == Processes(0, 1, 0)


def test_no_network_leads_to_this_machine_itself_or_to_nowhere() -> None:
    """To another machine: tests/faults/test_processes.py."""
    assert interface_towards("127.0.0.1") is None
    assert interface_towards("nowhere.invalid") is None

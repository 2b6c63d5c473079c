"""F14, F53 and F62 to F69: several processes, and what becomes of a run when one of them is gone.

Some of these faults are tested beside what they are about, too: `pytest -k "f62 or f63 or ..."` finds all of them.
"""

from __future__ import annotations

import datetime
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from core import processes
from core.errors import Interrupted
from core.processes import ALONE
from tests.annotations.conftest import make_coco_layout
from tests.faults.ranks import NUM_VAL, answers
from tests.faults.running import SHORT, children, under_way
from tests.faults.shell import Here, in_small_disk, linux, require_one_error
from tests.test_processes import torchrun
from tests.trainer.test_loop import Stopper
from tests.trainer.test_many_processes import EXACT, SIDE, assert_close_runs, process_of_rank
from tests.trainer.tiny import tiny_config, tiny_run

Answers = dict[str, Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small source in `coco`."""
    folder = tmp_path_factory.mktemp("source")
    make_coco_layout(folder / "coco")
    return folder


# F14, F55, F62, F69: several processes are as one. `ranks.py` says what each of them is asked.


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The folder of a run of one process that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    tiny_run(folder, tiny_config(**EXACT), size=(SIDE, SIDE))
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Answers:
    return answers(tmp_path_factory.mktemp("alone"), ALONE)


@pytest.mark.parametrize("num_processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_f14_f55_f62_f69_several_processes_are_as_one(
    alone: Answers, unbroken: Path, tmp_path: Path, num_processes: int
) -> None:
    """They go on with a run of one process, and are asked what one was asked; all by one command, to save time."""
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        tiny_run(run, tiny_config(**EXACT), size=(SIDE, SIDE), reporter=Stopper("step", 3))
    done = torchrun("-m", "tests.faults.ranks", tmp_path, processes=num_processes)
    assert done.returncode == 0, done.stderr
    sessions = json.loads((run / "manifest.json").read_text())["sessions"]
    assert [session["num_processes"] for session in sessions] == [1, num_processes]
    assert_close_runs(run, unbroken, 1e-5)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(num_processes)]
    require_same_images(ranks, alone)
    require_same_learning_without_boxes(ranks, alone)
    for count in NUM_VAL:
        require_same_scores([rank["scores"][count] for rank in ranks], alone["scores"][count], count)


def require_same_images(ranks: list[Answers], alone: Answers) -> None:
    """F69, and F55: the last of these steps are those of an epoch that is gone on with. Workers change nothing."""
    expected = alone["steps"][0]
    assert sorted(expected[0]) != sorted(expected[2])
    assert [sorted(step) for step in expected[4:]] == [sorted(step) for step in expected[3:4]]
    for ours in ([alone["steps"][2]], *([rank["steps"][workers] for rank in ranks] for workers in (0, 2))):
        for number, whole in enumerate(expected):
            of_step = [image for process in ours for image in process[number].items()]
            assert sorted(image_id for image_id, _ in of_step) == sorted(whole)
            assert all(torch.equal(pixels, whole[image_id]) for image_id, pixels in of_step)


def require_same_learning_without_boxes(ranks: list[Answers], alone: Answers) -> None:
    """F14: a process whose images have none."""
    expected = alone["without boxes"]["losses"]
    assert all(math.isfinite(loss) for loss in expected)
    weights = ranks[0]["without boxes"]["weights"]
    for rank in ranks:
        assert rank["without boxes"]["losses"] == pytest.approx(expected, rel=1e-5)
        assert all(torch.equal(rank["without boxes"]["weights"][name], weights[name]) for name in weights)


def require_same_scores(ranks: list[Answers], expected: Answers, num_images: int) -> None:
    """F62, also with fewer images than processes."""
    assert expected["num_images"] == num_images
    assert expected["stats"][0]["AP"] > 0.9
    for rank in ranks:
        assert rank["num_polls"] == ranks[0]["num_polls"]
        for ours, theirs in zip(rank["stats"], expected["stats"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-12)
    assert ranks[0]["found"].keys() == expected["found"].keys()
    for image_id, numbers in expected["found"].items():
        assert all(map(torch.equal, ranks[0]["found"][image_id], numbers))


# F53, F65: data workers, and a second run (F63, F64: tests/cli/test_many_processes.py)


def require_dead_worker(process: subprocess.Popen[str], worker: int) -> None:
    """Kill a data worker; require that its run ends soon and says which it was, and what may help."""
    began = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    require_one_error(process.returncode, said, 5, f" {worker})", "/dev/shm", "hint: ")
    assert time.monotonic() - began < 30


@linux
def test_f53_a_second_run_is_refused_and_f65_a_killed_worker_ends_the_first(
    source: Path, tmp_path: Path, here: Here
) -> None:
    run = tmp_path / "run"
    with under_way(run, "--workers", "1", cwd=source) as process:
        for flags in (["--resume"], ["--overwrite", *SHORT]):
            code, printed, said = here("train", *flags, "--out", run, cwd=source)
            require_one_error(code, said, 5, f"{run}: another run is using this folder", "hint: ")
            assert printed == ""
        assert process.poll() is None
        (worker,) = children(process.pid)
        require_dead_worker(process, worker)
    assert (run / "checkpoints" / "last" / "model.pt").is_file()


@linux
def test_f65_a_worker_killed_while_the_other_process_waits(source: Path, tmp_path: Path) -> None:
    with under_way(tmp_path / "run", "--workers", "1", "--nproc", "2", cwd=source) as process:
        (worker,) = children(process_of_rank(1, process.pid))
        os.kill(worker, signal.SIGSTOP)  # its process gets no more images, and the other one waits for that
        time.sleep(2)
        require_dead_worker(process, worker)


@linux
def test_f65_a_worker_killed_in_an_evaluation(trained: Path, here: Here) -> None:
    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for worker in set(multiprocessing.active_children()) - before:
                worker.kill()
                return
            time.sleep(0.001)

    before = set(multiprocessing.active_children())
    thread = threading.Thread(target=kill)
    thread.start()
    arguments = ["--set", "data.num_workers=1", "--device", "cpu"]
    code, _, said = here("eval", "--checkpoint", "runs/tiny", *arguments, cwd=trained)
    thread.join()
    require_one_error(code, said, 5, "a data worker died", "/dev/shm")


@linux
@pytest.mark.parametrize(
    ("kilobytes_taken", "words"),
    [
        (0, "data worker 0 has no shared memory for a batch: "),
        pytest.param(88, "the data workers cannot be started: No space left on device", marks=pytest.mark.slow),
    ],
)
def test_f65_shared_memory_that_is_too_small(source: Path, tmp_path: Path, kilobytes_taken: int, words: str) -> None:
    """For a batch; and, almost full already, for what workers are started with."""
    flags = [*SHORT, "--workers", "1", "--short-side", "200", "--set", "data.max_long_side=300"]
    script = f"""
        cd '{source}'
        mount --bind "$PLACE" /dev/shm
        head -c {kilobytes_taken}k /dev/zero > /dev/shm/taken
        exec "$PYTHON" -m dedetr_cli train {" ".join(flags)} --out '{tmp_path}/run'
    """
    done = in_small_disk(tmp_path / "disk", 96 << 10, script)
    require_one_error(done.returncode, done.stderr, 5, words, "hint: the machine may be short of memory or of /dev/shm")


# F66 to F68: how processes find each other (also: tests/cli/test_many_processes.py, tests/test_processes.py)


@contextmanager
def busy_port() -> Iterator[str]:
    """Give a port of this machine that somebody else listens at, who says nothing."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen(8)
        yield str(listener.getsockname()[1])


def test_f66_port_of_torchrun_that_is_taken(source: Path, tmp_path: Path) -> None:
    """It is torchrun that says so, before it starts anything."""
    with busy_port() as port:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
        command += ["-m", "dedetr_cli", "train", *SHORT, "--out", str(tmp_path / "run")]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "address already in use" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("rank", "reason"), [("0", "address already in use"), ("1", "does not answer")])
def test_f66_port_that_is_taken_without_torchrun(
    source: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, rank: str, reason: str
) -> None:
    monkeypatch.setattr(processes, "_TIME_TO_MEET", datetime.timedelta(seconds=1))
    with busy_port() as port:
        variables = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}
        variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        code, _, said = here("train", *SHORT, "--out", tmp_path / "run", cwd=source, **variables)
    require_one_error(code, said, 5, f"localhost:{port}", reason, "hint: check the network, or name another port")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "RANK": "1", "WORLD_SIZE": "4"}, 0),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "gone", "MASTER_PORT": "1"}, 0),
        ({"RANK": "7", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "gone", "MASTER_PORT": "1"}, 2),
        ({"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "", "MASTER_ADDR": "", "MASTER_PORT": ""}, 2),
    ],
    ids=["slurm", "one-process", "another-rank", "empty"],
)
def test_f68_variables_of_somebody_else(trained: Path, here: Here, variables: dict[str, str], expected: int) -> None:
    code, printed, said = here("eval", "--checkpoint", "runs/tiny", "--device", "cpu", cwd=trained, **variables)
    assert code == expected, said
    if expected:
        require_one_error(code, said, expected, "RANK, WORLD_SIZE", "hint: unset them")
    else:
        assert "AP50" in printed


# Several machines (tests/trainer/test_many_processes.py has two agents on this one)

_ADDRESSES = ("10.213.7.1", "10.213.7.2")
_TAKE_PART = """
    ip link set lo up
    ip address add {address}/24 dev {name}
    ip link set {name} up
"""


@pytest.fixture
def machines() -> Iterator[list[list[str]]]:
    """Two network namespaces with a cable between them: the words that start a command in each."""
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("network namespaces need Linux and its superuser")
    with ExitStack() as stack:
        holders = []
        for _ in _ADDRESSES:
            holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 900"], stdout=subprocess.PIPE)
            stack.enter_context(holder)
            stack.callback(holder.kill)
            assert holder.stdout is not None
            if not holder.stdout.readline():
                pytest.skip("no network namespace may be made here")
            holders.append(holder.pid)
        inside = [["nsenter", "-t", str(holder), "-n"] for holder in holders]
        cable = ["ip", "link", "add", "left", "type", "veth", "peer", "name", "right", "netns", str(holders[1])]
        if subprocess.run([*inside[0], *cable], capture_output=True, check=False).returncode:
            pytest.skip("no network cable may be made here")
        for words, name, address in zip(inside, ("left", "right"), _ADDRESSES, strict=True):
            subprocess.run([*words, "sh", "-ec", _TAKE_PART.format(name=name, address=address)], check=True)
        yield inside


def test_two_machines_with_a_network_between_them_equal_one(
    machines: list[list[str]], unbroken: Path, tmp_path: Path
) -> None:
    """Nothing of either is seen by the other but the folder and what goes through the cable."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{_ADDRESSES[0]}:29400", "--rdzv-id", "two"]
    program = ["-m", "tests.trainer.tiny", str(tmp_path / "run"), "--side", str(SIDE), "--config", json.dumps(EXACT)]
    agents = [
        subprocess.Popen(
            [*words, *agent, "--local-addr", address, "--rdzv-conf", f"is_host={name == 'left'}", *program],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for words, name, address in zip(machines, ("left", "right"), _ADDRESSES, strict=True)
    ]
    for process in agents:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    assert_close_runs(tmp_path / "run", unbroken, 1e-5)

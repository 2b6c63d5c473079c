"""`train --slurm`, by submitit's own executors, and the script of docs/slurm.md.

Where Slurm is wanted its programs are small scripts that do what the real ones do: `srun` runs the step in a process
group, to which a signal goes as a whole, and `scontrol requeue` has the batch script run once more.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import api
from core.config.schema import Config
from core.errors import MachineError, UsageError
from dedetr_cli.slurm_job import TrainingJob
from tests.cli.conftest import TINY, dedetr, succeed
from tests.trainer.comparison import assert_same_run

pytest.importorskip("submitit")
pytestmark = pytest.mark.skipif(
    os.name != "posix" or shutil.which("setsid") is None, reason="needs setsid, as Linux has it"
)

ROOT = Path(__file__).resolve().parents[2]
LONG = [
    *TINY[2:], "--steps", "24", "--subset", "0.05", "--batch-size", "4", "--set", "run.eval_every=8",
    "--set", "run.checkpoint_share=1", "--workers", "2",
]  # fmt: skip
PROGRAMS = {
    "sbatch": """
        while [ "${1#-}" != "$1" ]; do shift; done
        cp "$1" "$here/script"
        (
            export SLURM_JOB_ID=4711 SLURM_JOB_NAME=dedetr SLURM_CPUS_PER_TASK=1
            while
                rm -f "$here/requeued"
                bash "$here/script" >> "$here/log" 2>&1
                code=$?
                [ -e "$here/requeued" ]
            do :; done
            echo $code > "$here/ended.new"
            mv "$here/ended.new" "$here/ended"
        ) < /dev/null > /dev/null 2>&1 &
        echo "Submitted batch job 4711"
    """,
    "srun": """
        while [ "${1#-}" != "$1" ]; do
            [ "$1" = --output ] && shift
            shift
        done
        echo step >> "$here/steps"
        setsid --wait sh -c 'echo $$ > "$0"; exec "$@"' "$here/group" "$@"
    """,
    "scontrol": """
        echo "$@" >> "$here/scontrol-calls"
        touch "$here/requeued"
    """,
    "squeue": """
        cat "$here/state"
    """,
}


class FakeSlurm:
    """Slurm's programs in a folder, and the one job that they know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name, script in PROGRAMS.items():
            (folder / name).write_text(f'#!/bin/bash\nhere="{folder}"\n{script}')
            (folder / name).chmod(0o755)
        self.path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.set_state("RUNNING")

    def set_state(self, state: str) -> None:
        (self.folder / "state").write_text(state + "\n")

    def signal_step(self, number: signal.Signals) -> None:
        """Send a signal to every process of the step, as Slurm does."""
        os.killpg(int((self.folder / "group").read_text()), number)

    @property
    def num_steps(self) -> int:
        return (self.folder / "steps").read_text().count("step")

    @property
    def was_requeued(self) -> bool:
        return (self.folder / "scontrol-calls").exists()

    def exit_code(self) -> int:
        """Wait for the end of the job."""
        wait_for((self.folder / "ended").exists, self.log)
        return int((self.folder / "ended").read_text())

    def log(self) -> str:
        return (self.folder / "log").read_text()


def wait_for(is_there: Callable[[], bool], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + 240
    while not is_there():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain:\n{log()}")
        time.sleep(0.05)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", fake.path)
    yield fake
    if not (fake.folder / "ended").exists():
        with contextlib.suppress(OSError, ValueError):
            fake.signal_step(signal.SIGKILL)


@pytest.fixture(scope="module")
def unbroken(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    succeed("train", *LONG, "--out", run, cwd=trained)
    return run


def has_lines(run: Path, count: int) -> Callable[[], bool]:
    metrics = run / "metrics.jsonl"
    return lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= count


def children_of(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def test_a_job_on_this_machine_is_stopped_requeued_and_ends_as_the_unbroken_run(
    trained: Path, tmp_path: Path, unbroken: Path
) -> None:
    run = tmp_path / "run"
    local = ["--slurm", "--slurm-set", "cluster=local", "--slurm-set", "time=60", "--out", run, "--json"]
    told = json.loads(succeed("train", *LONG, *local, cwd=trained).stdout)
    controller, log = int(told["job_id"]), Path(told["log"])
    assert told["run_folder"] == str(run)
    try:
        wait_for(has_lines(run, 10), log.read_text)
        os.kill(children_of(controller)[0], signal.SIGUSR2)
        wait_for(lambda: "successful completion" in log.read_text(), log.read_text)
    finally:
        tasks = children_of(controller)
        for process in (controller, *tasks, *(child for task in tasks for child in children_of(task))):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
    text = log.read_text()
    assert text.count("Requeued job") == 1, text
    assert len(re.findall(r"from step [1-9]\d*", text)) == 1, text
    assert "Traceback" not in text
    assert_same_run(run, unbroken)
    commands = [session["command"] for session in json.loads((run / "manifest.json").read_text())["sessions"]]
    assert [command[-1] for command in commands] == ["--overwrite", "--resume"]


def test_a_run_that_fails_in_a_job_is_not_requeued_and_its_exit_code_is_the_job_s(
    trained: Path, tmp_path: Path, slurm: FakeSlurm
) -> None:
    shutil.copytree(trained / "data", tmp_path / "data", symlinks=True)
    subset = json.loads((tmp_path / "data" / "annotations" / "train-5pct-seed0.json").read_text())
    bad = tmp_path / "data" / "images" / subset["images"][5]["file_name"]
    bad.write_bytes(bad.read_bytes()[:-200])
    chosen = ["--slurm-set", "partition=a b", "--slurm-set", "mem=2G", "--slurm-set", "setup=export ONE=1"]
    done = dedetr("train", *LONG, "--slurm", *chosen, "--out", "my run", cwd=tmp_path, PATH=slurm.path)
    assert done.returncode == 0, done.stderr
    job, log, run = done.stdout.splitlines()
    assert (job, run) == ("job 4711", str(tmp_path / "my run"))
    assert Path(log.removeprefix("log ")).parent == tmp_path / "my run" / "slurm"
    assert slurm.exit_code() == 3, slurm.log()
    assert not slurm.was_requeued
    assert f"error: {bad}" in slurm.log()
    assert "exit code 3" in slurm.log()
    assert "Traceback" not in slurm.log()
    script = (slurm.folder / "script").read_text().splitlines()
    for line in (
        "#SBATCH --partition='a b'", "#SBATCH --mem=2G", "#SBATCH --time=1440", "#SBATCH --signal=USR2@120",
        "#SBATCH --requeue", "#SBATCH --cpus-per-task=3", "export ONE=1",
    ):  # fmt: skip
        assert line in script
    assert not any("gpus" in line or "nodes=2" in line for line in script)  # --device cpu
    with pytest.raises(UsageError):  # what the job has left keeps other runs out
        api.reserve_run_folder(tmp_path / "my run", "detr", resume=False, overwrite=False)


CHILD = """
import signal, sys, time
def stop(number, frame):
    time.sleep(0.3)
    open("heard", "a").write(signal.Signals(number).name + " ")
    sys.exit(int(sys.argv[1]))
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, stop)
open("began", "a").write("x")
time.sleep(1000)
"""
"""Takes signals as training does, but for the default action of SIGUSR2, which is death."""


@pytest.mark.parametrize(
    ("signals", "state", "ends_with", "is_requeued"),
    [
        ([signal.SIGUSR2], "RUNNING", 143, True),  # the time limit is near, or a preemption that is announced
        ([signal.SIGTERM], "RUNNING", 143, True),  # a preemption with a grace time
        ([signal.SIGTERM, signal.SIGUSR2], "RUNNING", 143, True),
        ([signal.SIGTERM], "COMPLETING", 143, False),  # cancelled
        ([signal.SIGINT], "RUNNING", 130, False),
        ([signal.SIGUSR2], "RUNNING", 5, False),  # the disk was full when it wanted to save
        ([signal.SIGUSR2], "RUNNING", 0, False),  # had just finished
    ],
)
def test_who_stops_a_job_decides_whether_it_is_requeued(
    signals: list[signal.Signals], state: str, ends_with: int, is_requeued: bool, tmp_path: Path, slurm: FakeSlurm
) -> None:
    """All processes of the step get the signals: the child hears one, and no signal kills it."""
    reserved = api.reserve_run_folder(tmp_path / "run", "detr", resume=False, overwrite=False)
    start = [sys.executable, "-c", CHILD, str(ends_with)]
    job = TrainingJob(start, ["false"], tmp_path, reserved.path, reserved.earlier_run)
    submitted = api.submit(job, reserved, api.slurm_options(["gpus_per_node=0"], Config(), 1))
    assert submitted.job_id == "4711"
    slurm.set_state(state)
    wait_for((tmp_path / "began").exists, slurm.log)
    for number in signals:
        slurm.signal_step(number)
    if is_requeued:
        wait_for(lambda: (tmp_path / "began").read_text() == "xx", slurm.log)
        slurm.set_state("COMPLETING")
        slurm.signal_step(signal.SIGTERM)
    assert slurm.exit_code() == ends_with, slurm.log()
    assert slurm.num_steps == 1 + is_requeued, slurm.log()
    assert slurm.was_requeued == is_requeued
    first = "SIGINT" if signals == [signal.SIGINT] else "SIGTERM"
    assert (tmp_path / "heard").read_text().split() == [first, *["SIGTERM"] * is_requeued]


def test_a_job_that_never_comes_to_save_is_given_up(tmp_path: Path) -> None:
    job = TrainingJob(["true"], ["true"], tmp_path, tmp_path / "run", None)
    assert all(job.checkpoint() is not None for _ in range(4))
    assert job.checkpoint() is None


def test_a_requeued_job_goes_on_with_its_own_run_only(tmp_path: Path) -> None:
    """F45: nor does it begin anew where checkpoints are that cannot be read, which --resume tells."""
    (tmp_path / "checkpoints" / "step-00000001.damaged").mkdir(parents=True)
    assert not api.has_saved(tmp_path, None)
    (tmp_path / "manifest.json").write_text('{"run_id": "earlier"}')
    assert not api.has_saved(tmp_path, "earlier")
    (tmp_path / "manifest.json").write_text('{"run_id": "own"}')
    assert api.has_saved(tmp_path, "earlier")
    (tmp_path / "checkpoints" / "step-00000001.damaged").rename(tmp_path / "checkpoints" / "step-00000001.tmp")
    assert not api.has_saved(tmp_path, "earlier")


def test_what_sbatch_refuses_is_told_and_nothing_is_left(tmp_path: Path, slurm: FakeSlurm) -> None:
    refusal = "sbatch: error: invalid partition specified: x"
    (slurm.folder / "sbatch").write_text(f"#!/bin/sh\necho '{refusal}' >&2; exit 1\n")
    for out in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        reserved = api.reserve_run_folder(out, "detr", resume=False, overwrite=False)
        with pytest.raises(MachineError, match=refusal):
            api.submit(TrainingJob([], [], tmp_path, out, None), reserved, api.slurm_options([], Config(), 1))
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "empty" / "slurm").exists()


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("partiton=gpu", "did you mean 'partition'"),
        ("timeout_min=60", "did you mean 'time'"),
        ("nodes=2", "several machines"),
        ("partition", "such as partition=gpu"),
        ("comment=a\n#SBATCH --x", "such as partition=gpu"),
        ("time=soon", "minutes"),
        ("time=0", "minutes"),
        ("time=2", "longer time"),
        ("signal_delay_s=-1", "signal_delay_s=60"),
        ("cluster=slrm", "did you mean 'slurm'"),
    ],
)
def test_options_that_are_none_are_refused(assignment: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        api.slurm_options([assignment], Config(), 1)
    assert said in str(refused.value.hint)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("2-12", 3600), ("1-0:30", 1470), ("0-0:0:5", 1)],
)
def test_times_are_read_as_sbatch_reads_them(text: str, minutes: int) -> None:
    assert api.slurm_options([f"time={text}", "signal-delay-s=0"], Config(), 1).minutes == minutes


def test_a_job_asks_for_what_its_processes_need() -> None:
    config = Config.model_validate({"data": {"num_workers": 3}})
    assert api.slurm_options([], config, 2).sbatch == {"cpus_per_task": "8", "gpus_per_node": "2"}
    assert api.slurm_options(["gres=gpu:a100:2", "cpus-per-gpu=4"], config, 2).sbatch == {
        "cpus_per_gpu": "4", "gres": "gpu:a100:2",
    }  # fmt: skip


def test_what_is_missing_is_told(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="no sbatch"):
        api.require_slurm("slurm")
    api.require_slurm("local")
    done = dedetr("train", *TINY, "--slurm", "--out", tmp_path / "run", "--dry-run", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "no sbatch" in done.stderr
    assert json.loads(done.stdout)["slurm"]["command"][:3] == ["dedetr", "train", "--epochs=1"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_script_of_the_documentation_requeues_itself_and_ends_as_the_unbroken_run(
    trained: Path, tmp_path: Path, unbroken: Path, slurm: FakeSlurm
) -> None:
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "slurm.md").read_text(), re.DOTALL)
    script = next(block for block in blocks if block.startswith("#!/bin/bash"))
    assert script.count("--model dela-detr") == 1  # the reader's own flags stand here
    (tmp_path / "job.sh").write_text(script.replace("--model dela-detr", shlex.join(LONG)))
    (tmp_path / "data").symlink_to(trained / "data")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(["sbatch", "job.sh"], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    run = tmp_path / "runs" / "dedetr-4711"
    wait_for(has_lines(run, 10), slurm.log)
    slurm.signal_step(signal.SIGUSR1)
    assert slurm.exit_code() == 0, slurm.log()
    assert slurm.num_steps == 2
    assert (slurm.folder / "scontrol-calls").read_text() == "requeue 4711\n"
    assert_same_run(run, unbroken)

"""When a run is saved, and that nothing but time depends on it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from core.assembly import Assembly
from core.errors import CheckpointError, DataError, DivergedError, Interrupted, MachineError
from core.models.detector import Detector
from core.trainer.checkpoint import CheckpointFolder
from core.trainer.pace import SavePace
from core.trainer.pointers import pointed_to
from core.trainer.reporter import CheckpointSaved, NullReporter, RunStarted, StepDone
from core.trainer.saving import BackgroundTask, copy_to_host
from tests.trainer.comparison import assert_same, assert_same_run
from tests.trainer.tiny import Recorder, tiny_config, tiny_run

AFTER_EACH_STEP = {"checkpoint_minutes": 0, "checkpoint_share": 1.0, "keep_checkpoints": 20}


def last_step(run: Path) -> str:
    last = pointed_to(run / "checkpoints" / "last")
    return last.name if last else "none"


# Pace


def test_pace_keeps_to_its_share_of_the_time() -> None:
    now = 0.0
    pace = SavePace(share=0.01, minutes=1, now=lambda: now)
    assert pace.is_affordable()  # nobody knows yet what it takes
    assert not pace.is_due_between_steps()
    now = 60.0
    assert pace.is_due_between_steps()
    pace.saved(2.0)
    now = 120.0
    assert not pace.is_affordable()
    now = 399.0
    assert not pace.is_affordable()
    assert not pace.is_due_between_steps()
    now = 400.0  # 4 seconds of 400
    assert pace.is_affordable()
    assert pace.is_due_between_steps()
    pace.saved(0.1)
    now = 410.0
    assert pace.is_affordable() is (2.2 <= 4.1)
    assert not pace.is_due_between_steps()
    assert pace.blocked_seconds == pytest.approx(2.1)


def test_ends_of_epochs_are_saved_as_often_as_it_is_affordable(tmp_path: Path) -> None:
    recorder = Recorder()
    tiny_run(tmp_path / "run", tiny_config(run={"checkpoint_share": 1e-6}), reporter=recorder, validate=False)
    assert [event.step for event in recorder.events if isinstance(event, CheckpointSaved)] == [4, 12]


# What a save holds


class _Killed(BaseException):
    """Like SIGKILL: nothing is done any more."""


class _Killer(NullReporter):
    def __init__(self, step: int) -> None:
        self.step = step

    def step_done(self, event: StepDone) -> None:
        if event.step == self.step:
            raise _Killed


def test_a_run_that_is_killed_in_an_epoch_goes_on_from_its_middle(tmp_path: Path, unbroken: Path) -> None:
    with pytest.raises(_Killed):
        tiny_run(tmp_path / "run", tiny_config(run=AFTER_EACH_STEP | {"background_saves": False}), reporter=_Killer(7))
    assert last_step(tmp_path / "run") == "step-00000006"
    tiny_run(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_save_in_the_background_holds_the_step_it_was_made_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float | None
) -> None:
    def slow_save(folder: CheckpointFolder, *arguments: Any, **options: Any) -> Path:
        time.sleep(0.3)  # some steps long
        return save(folder, *arguments, **options)

    save = CheckpointFolder.save
    monkeypatch.setattr(CheckpointFolder, "save", slow_save)
    optimizer: dict[str, Any] = {"ema_decay": average, "accumulate": 2}
    for name, in_background in (("back", True), ("fore", False)):
        settings = {**AFTER_EACH_STEP, "background_saves": in_background}
        tiny_run(tmp_path / name, tiny_config(run=settings, optimizer=optimizer))
    back, fore = (CheckpointFolder(tmp_path / name / "checkpoints", 20) for name in ("back", "fore"))
    common = {path.name for path in back.path.glob("step-*")}
    assert len(common) > 3
    assert any(int(name[5:]) % 4 for name in common)
    for name in common:
        ours, theirs = (
            {
                "weights": torch.load(folder.path / name / "model.pt", weights_only=True)["model"],
                "optimizer": torch.load(folder.path / name / "training.pt", weights_only=True)["optimizer"],
            }
            for folder in (back, fore)
        )
        assert_same(ours, theirs)
        sizes = [sum(file.stat().st_size for file in (folder.path / name).iterdir()) for folder in (back, fore)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_the_copy_on_the_host_is_no_larger_and_does_not_change() -> None:
    tensor = torch.arange(6.0)
    copy = copy_to_host({"a": tensor, "b": [tensor, (tensor[:3], "text", 1)], "none": None})
    tensor += 1
    assert copy["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert copy["b"][0] is copy["a"]
    assert copy["b"][1][0].tolist() == [0, 1, 2]
    assert (copy["b"][1][1:], copy["none"]) == (("text", 1), None)


def test_a_background_task_raises_where_it_is_asked() -> None:
    def fail() -> None:
        raise MachineError("full")

    task = BackgroundTask(fail)
    with pytest.raises(MachineError, match="full"):
        task.result()
    assert task.is_done
    assert BackgroundTask(lambda: 3).result() == 3


# Errors


def at_forward(number: int, action: Callable[[Detector], Any]) -> Callable[[Assembly], None]:
    """Return what makes the n-th forward pass of training go wrong."""
    left = number

    def spoil(model: Detector, _inputs: Any, output: Any) -> Any:
        nonlocal left
        left -= model.training
        return action(model) if left == 0 and model.training else None

    return lambda assembly: assembly.model.register_forward_hook(spoil)


def out_of_memory(_model: Detector) -> None:
    torch.empty(1 << 50)


def unreadable(_model: Detector) -> None:
    raise DataError("the image cannot be read")


def poison(assembly: Assembly) -> None:
    left = 6

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal left
        left -= 1
        return gradient * torch.nan if left == 0 else gradient

    assembly.model.query_embed.weight.register_hook(spoil)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(at_forward(6, out_of_memory), MachineError, id="F59"),
        pytest.param(at_forward(6, unreadable), DataError, id="F22"),
        pytest.param(poison, DivergedError, id="F56"),
    ],
)
def test_an_error_in_a_step_saves_the_step_before(
    tmp_path: Path, unbroken: Path, change: Callable[[Assembly], None], error: type[Exception]
) -> None:
    """Batch norm's statistics, too, are those of the step before: the run goes on as if nothing had been."""
    recorder = Recorder()
    with pytest.raises(error):
        tiny_run(tmp_path / "run", tiny_config(run={"keep_checkpoints": 1}), change=change, reporter=recorder)
    assert last_step(tmp_path / "run") == "step-00000005"
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()
    assert "saved as it was after step 5 of 12" in recorder.warnings[-1]
    tiny_run(tmp_path / "run", resume=True)
    shutil.rmtree(tmp_path / "run" / "diverged", ignore_errors=True)
    assert_same_run(tmp_path / "run", unbroken)


def test_weights_that_are_infinite_are_not_saved(tmp_path: Path) -> None:
    changed: list[Assembly] = []

    class Overflow(Recorder):
        def step_done(self, event: StepDone) -> None:
            if event.step == 6:
                with torch.no_grad():
                    changed[0].model.query_embed.weight[0, 0] = torch.inf

    recorder = Overflow()
    with pytest.raises(DivergedError):
        tiny_run(tmp_path / "run", reporter=recorder, change=changed.append)
    assert last_step(tmp_path / "run") == "step-00000004"
    assert "weights are not finite" in recorder.warnings[-1]


def test_an_error_in_the_middle_of_an_update_saves_nothing(tmp_path: Path, unbroken: Path) -> None:
    num_updates = 0

    def fail(*_arguments: Any) -> None:
        nonlocal num_updates
        num_updates += 1
        if num_updates == 6:
            raise MachineError("in the middle")

    hook = register_optimizer_step_post_hook(fail)
    try:
        with pytest.raises(MachineError, match="in the middle"):
            tiny_run(tmp_path / "run")
    finally:
        hook.remove()
    assert last_step(tmp_path / "run") == "step-00000004"
    tiny_run(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", unbroken)


def test_an_error_before_the_first_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        tiny_run(tmp_path / "run", change=at_forward(1, unreadable))
    assert last_step(tmp_path / "run") == "none"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        tiny_run(tmp_path / "run", resume=True)


class _Blocker(NullReporter):
    """Puts a file where checkpoints shall go."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.warnings: list[str] = []

    def step_done(self, event: StepDone) -> None:
        if event.step == 2:
            (self.run / "checkpoints").write_text("")

    def warning(self, message: str) -> None:
        self.warnings.append(message)


@pytest.mark.parametrize("in_background", [True, False])
def test_f48_a_save_that_is_refused_ends_the_run_and_is_not_tried_again(tmp_path: Path, in_background: bool) -> None:
    blocker = _Blocker(tmp_path / "run")
    with pytest.raises(MachineError, match="cannot save the checkpoint") as refused:
        tiny_run(tmp_path / "run", tiny_config(run={"background_saves": in_background}), reporter=blocker)
    assert refused.value.exit_code == 5
    assert blocker.warnings == []


# What a second signal, a failing copy and a resumption with other settings may break


def test_f42_a_second_signal_during_a_save_ends_the_process_cleanly(tmp_path: Path) -> None:
    """A thread in C++ code that outlived the interpreter would abort it."""
    program = (
        "import sys, time, torch\n"
        "from core.trainer import checkpoint\n"
        "write = checkpoint._write_tensors\n"
        "def write_much(path, content):\n"
        "    print('saving', flush=True)\n"
        "    write(path, {**content, 'much': torch.zeros(60_000_000)})\n"
        "checkpoint._write_tensors = write_much\n"
        "from tests.trainer.tiny import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run"), "--rest-after", "2", "--rest-seconds", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "step 2":
                process.send_signal(signal.SIGTERM)
            if line.strip() == "saving":
                time.sleep(0.15)
                process.send_signal(signal.SIGTERM)
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "terminate" not in errors


def test_a_save_whose_copy_fails_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_copies = 0

    def fail_once(content: Any) -> Any:
        nonlocal num_copies
        num_copies += 1
        if num_copies == 3:  # the first of the second save
            raise MemoryError
        return copy_to_host(content)

    monkeypatch.setattr("core.trainer.journal.copy_to_host", fail_once)
    recorder = Recorder()
    with pytest.raises(MachineError, match="out of memory"):
        tiny_run(tmp_path / "run", reporter=recorder)
    assert last_step(tmp_path / "run") == "step-00000008"
    assert "saved as it was after step 8" in recorder.warnings[-1]


def test_other_settings_are_saved_before_the_first_step_with_them(tmp_path: Path) -> None:
    """Stopped there, the run is resumed without a word about them."""
    tiny_run(tmp_path / "run", tiny_config(schedule={"epochs": 1}))
    other = tiny_config(optimizer={"lr": 5e-4})

    class Stopper(NullReporter):
        def run_started(self, event: RunStarted) -> None:
            raise Interrupted("stopped by a test", exit_code=143)

    with pytest.raises(Interrupted, match="saved in"):
        tiny_run(tmp_path / "run", other, resume=True, override=True, reporter=Stopper())
    assert tiny_run(tmp_path / "run", other, resume=True).num_steps == 12


def test_workers_are_forked_while_nothing_is_saved(tmp_path: Path) -> None:
    """A run that was stopped in an evaluation begins with it, and saves before it starts to read for training."""
    config = tiny_config(data={"num_workers": 1})

    class Stopper(NullReporter):
        def evaluation_batch_done(self) -> None:
            raise Interrupted("stopped by a test", exit_code=143)

    with pytest.raises(Interrupted):
        tiny_run(tmp_path / "run", config, reporter=Stopper())
    threads: list[str] = []
    os.register_at_fork(before=lambda: threads.extend(thread.name for thread in threading.enumerate()))
    tiny_run(tmp_path / "run", config, resume=True)
    assert threads
    assert "save checkpoint" not in threads

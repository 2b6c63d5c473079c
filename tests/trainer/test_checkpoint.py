from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import CheckpointError, MachineError
from core.files import sha256_of
from core.models.weights import pack_weights, read_weights
from core.trainer.checkpoint import CheckpointFolder, find_damage, find_model_file
from core.trainer.pointers import pointed_to
from tests.datasets.scenes import CLASSES
from tests.trainer.tiny import Recorder


def save(folder: CheckpointFolder, step: int, value: float | None = None, *, is_best: bool = False) -> Path:
    weights = {"w": torch.full((3,), float(step) if value is None else value)}
    return folder.save(step, pack_weights(weights, {}, CLASSES), {"state": {"step": step}}, is_best=is_best)


def steps_in(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def loaded(folder: CheckpointFolder) -> tuple[int, float, list[str]]:
    reporter = Recorder()
    checkpoint = folder.load_newest(reporter)
    assert checkpoint.training["state"]["step"] == checkpoint.step
    return checkpoint.step, checkpoint.weights.state["w"][0].item(), reporter.warnings


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints", num_kept=2)


def test_newest_is_read_back_without_a_warning(folder: CheckpointFolder) -> None:
    save(folder, 10)
    save(folder, 20)
    assert loaded(folder) == (20, 20.0, [])
    weights = read_weights(find_model_file(folder.path.parent))
    assert weights.classes == CLASSES


def test_newest_and_best_are_kept(folder: CheckpointFolder) -> None:
    for step in (10, 20, 30, 40):
        save(folder, step, is_best=step == 10)
    assert steps_in(folder) == ["best", "last", "step-00000010", "step-00000030", "step-00000040"]
    assert folder.best == folder.path / "step-00000010"
    assert pointed_to(folder.path / "last") == folder.path / "step-00000040"
    save(folder, 50, is_best=True)
    assert steps_in(folder) == ["best", "last", "step-00000040", "step-00000050"]


def test_earlier_ones_are_kept_where_the_newest_may_not_be_better(folder: CheckpointFolder) -> None:
    save(folder, 10)
    save(folder, 20)
    folder.save(30, pack_weights({}, {}, CLASSES), {}, is_best=False, keep_earlier=True)
    assert steps_in(folder) == ["last", "step-00000010", "step-00000020", "step-00000030"]
    save(folder, 40)
    assert steps_in(folder) == ["last", "step-00000030", "step-00000040"]


def test_pointers_survive_a_move_of_the_run(folder: CheckpointFolder, tmp_path: Path) -> None:
    save(folder, 10, is_best=True)
    moved = tmp_path / "elsewhere"
    folder.path.rename(moved)
    assert find_model_file(moved / "best") == moved / "step-00000010" / "model.pt"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_bit, empty, Path.unlink])
@pytest.mark.parametrize("name", ["model.pt", "training.pt", "manifest.json"])
def test_f44_damaged_newest_is_named_and_the_one_before_taken(folder: CheckpointFolder, name: str, damage: Any) -> None:
    save(folder, 10)
    newest = save(folder, 20)
    damage(newest / name)
    step, value, warnings = loaded(folder)
    assert (step, value) == (10, 10.0)
    assert len(warnings) == 1
    assert str(newest) in warnings[0]
    assert "step 10" in warnings[0]


def test_f45_none_valid_is_an_error_and_never_a_fresh_start(folder: CheckpointFolder) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint") as missing:
        folder.load_newest(Recorder())
    assert missing.value.exit_code == 4
    truncate(save(folder, 10) / "model.pt")
    with pytest.raises(CheckpointError, match=r"step-00000010 is damaged \(model.pt"):
        folder.load_newest(Recorder())


def test_saving_on_after_a_fall_back_keeps_what_was_just_saved(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, num_kept=2)
    save(folder, 10)
    truncate(save(folder, 20) / "model.pt")
    assert loaded(folder)[0] == 10
    folder.restore_pointers(10, None)
    assert find_model_file(folder.path / "last").parent.name == "step-00000010"
    save(folder, 12)
    assert loaded(folder) == (12, 12.0, [])
    assert steps_in(folder) == ["last", "step-00000010", "step-00000012", "step-00000020.damaged"]
    save(folder, 20)
    assert loaded(folder) == (20, 20.0, [])


def test_f47_steps_are_numbers(folder: CheckpointFolder) -> None:
    save(folder, 99_999_999)
    save(folder, 100_000_000)
    assert loaded(folder)[0] == 100_000_000


def test_same_step_is_replaced(folder: CheckpointFolder) -> None:
    save(folder, 10, value=1.0)
    save(folder, 10, value=2.0)
    assert loaded(folder) == (10, 2.0, [])
    assert steps_in(folder) == ["last", "step-00000010"]


def test_save_cut_off_before_its_pointers_gets_them(folder: CheckpointFolder) -> None:
    save(folder, 10, is_best=True)
    save(folder, 20, is_best=True)
    for name in ("last", "best"):
        (folder.path / name).unlink()
        (folder.path / name).symlink_to("step-00000010")
    folder.restore_pointers(20, 20)
    assert pointed_to(folder.path / "last") == folder.best == folder.path / "step-00000020"
    folder.restore_pointers(20, 15)
    assert folder.best == folder.path / "step-00000020"


def test_f46_leftovers_are_ignored_and_cleaned(folder: CheckpointFolder) -> None:
    save(folder, 10)
    save(folder, 20).rename(folder.path / "step-00000030.tmp")
    (folder.path / ".last.123.tmp").symlink_to("step-00000030.tmp")
    assert loaded(folder) == (10, 10.0, [])
    folder.clean()
    assert steps_in(folder) == ["last", "step-00000010"]


def test_f46_set_aside_checkpoint_is_put_back(folder: CheckpointFolder) -> None:
    save(folder, 10, value=1.0).rename(folder.path / "step-00000010.old")
    folder.clean()
    assert loaded(folder) == (10, 1.0, [])
    save(folder, 20).rename(folder.path / "step-00000010.old")
    save(folder, 10, value=2.0)
    folder.clean()
    assert loaded(folder) == (10, 2.0, [])


class _Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.canary,)


def test_f32_pickle_in_a_checkpoint_is_not_run(folder: CheckpointFolder, tmp_path: Path) -> None:
    newest = save(folder, 10)
    canary = tmp_path / "canary"
    (newest / "training.pt").write_bytes(pickle.dumps({"state": _Evil(canary)}, protocol=2))
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["sha256"]["training.pt"] = sha256_of(newest / "training.pt")
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert find_damage(newest) is None
    with pytest.raises(CheckpointError):
        folder.load_newest(Recorder())
    assert not canary.exists()


def test_what_cannot_be_read_back_is_not_saved(folder: CheckpointFolder) -> None:
    save(folder, 10)
    with pytest.raises(pickle.UnpicklingError):
        folder.save(20, pack_weights({"w": torch.zeros(1)}, {}, CLASSES), {"state": random.Random(0)}, is_best=False)
    assert steps_in(folder) == ["last", "step-00000010"]


def test_f54_checkpoint_of_a_newer_format_says_who_made_it(folder: CheckpointFolder) -> None:
    content = pack_weights({"w": torch.zeros(1)}, {}, CLASSES) | {"format_version": 99, "made_by": "7.8.9"}
    folder.save(10, content, {}, is_best=False)
    with pytest.raises(CheckpointError, match=r"7\.8\.9.*99"):
        folder.load_newest(Recorder())


def test_f48_refused_save_is_an_error_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(MachineError) as refused:
        save(CheckpointFolder(tmp_path / "checkpoints", 2), 10)
    assert refused.value.exit_code == 5


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_f48_read_only_folder_is_an_error_of_the_machine(folder: CheckpointFolder) -> None:
    save(folder, 10)
    folder.path.chmod(0o500)
    try:
        with pytest.raises(MachineError, match=r"[Pp]ermission"):
            save(folder, 20)
    finally:
        folder.path.chmod(0o700)
    assert loaded(folder)[0] == 10


_FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from core.errors import MachineError
from core.models.weights import pack_weights
from core.trainer.checkpoint import CheckpointFolder
from tests.datasets.scenes import CLASSES
folder = CheckpointFolder(Path(sys.argv[1]), 2)
def save(step):
    folder.save(step, pack_weights({"w": torch.full((100_000,), float(step))}, {}, CLASSES),
                {"state": {"step": step}}, is_best=True)
save(10)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    save(20)
except MachineError as error:
    print(error, error.hint)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_f70_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """The limit on the size of files stands in for a full disk: a write in the middle of a file fails."""
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 5, done.stdout + done.stderr
    assert "bytes needed" in done.stdout
    assert "free" in done.stdout
    folder = CheckpointFolder(tmp_path, 2)
    assert loaded(folder)[0] == 10
    assert steps_in(folder) == ["best", "last", "step-00000010"]


_KILL_SAVERS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from core.trainer.checkpoint import CheckpointFolder
from tests.trainer.test_checkpoint import save
torch.set_num_threads(1)
rng = random.Random(0)
for trial in range(int(sys.argv[2])):
    place = Path(sys.argv[1]) / str(trial)
    child = os.fork()
    if child == 0:
        folder = CheckpointFolder(place / "checkpoints", 2)
        save(folder, 1)
        (place / "told").write_text("1")
        for step in range(2, 10_000):
            for value in (1.0, 2.0):
                save(folder, step, value, is_best=step % 3 == 0)
            (place / "told").write_text(str(step))
    while not (place / "told").exists():
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_f40_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _KILL_SAVERS, str(tmp_path), "25"], check=True, timeout=120)
    reached = set()
    for trial in range(25):
        folder = CheckpointFolder(tmp_path / str(trial) / "checkpoints", 2)
        told = int((tmp_path / str(trial) / "told").read_text() or 1)
        folder.clean()
        step, value, warnings = loaded(folder)
        assert value in (1.0, 2.0)
        assert warnings == []
        assert step >= told
        assert not [name for name in steps_in(folder) if name.endswith((".tmp", ".old"))]
        reached.add(step)
    assert len(reached) > 1


def test_model_file_is_found_from_run_checkpoint_pointer_or_file(folder: CheckpointFolder, tmp_path: Path) -> None:
    first = save(folder, 10, is_best=True)
    second = save(folder, 20)
    run = folder.path.parent
    assert find_model_file(run) == first / "model.pt"
    assert find_model_file(folder.path / "last") == second / "model.pt"
    assert find_model_file(folder.path) == first / "model.pt"
    assert find_model_file(second) == second / "model.pt"
    assert find_model_file(second / "model.pt") == second / "model.pt"
    with pytest.raises(CheckpointError, match="no such"):
        find_model_file(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_model_file(tmp_path / "empty")

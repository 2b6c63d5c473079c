from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from core.config.schema import Config
from core.errors import CheckpointError, MachineError, UsageError
from core.trainer.pointers import point_to, pointed_to
from core.trainer.run_folder import DatasetIdentity, RunFolder
from tests.trainer.tiny import IDENTITY, tiny_config

CPU = torch.device("cpu")


def fill(path: Path) -> None:
    with RunFolder.create(path, "detr") as run:
        run.describe(tiny_config(), IDENTITY, CPU, ["dedetr", "train"])


def test_f82_unnamed_runs_have_different_folders(tmp_path: Path) -> None:
    runs = [RunFolder.create(None, "detr", runs_root=tmp_path / "runs") for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert all(run.path.parent == tmp_path / "runs" and run.path.name.startswith("detr-") for run in runs)


def test_f52_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty") as refused:
        RunFolder.create(tmp_path, "detr")
    assert refused.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_f52_overwrite_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder.create(tmp_path, "detr", overwrite=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.txt"]


_HOLD = """
import os, sys, time
from pathlib import Path
from core.trainer.run_folder import RunFolder
run = RunFolder.reopen(Path(sys.argv[1]))
child = os.fork()  # as a data worker is
if child:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_f53_second_run_in_the_same_folder_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    fill(tmp_path)
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        for attempt in (lambda: RunFolder.reopen(tmp_path), lambda: RunFolder.create(tmp_path, "d", overwrite=True)):
            with pytest.raises(MachineError, match="another run") as refused:
                attempt()
            assert refused.value.exit_code == 5
        assert (tmp_path / "config.yaml").exists()
        holder.kill()
        holder.wait()
        RunFolder.reopen(tmp_path).close()
        os.kill(child, signal.SIGKILL)


def test_f71_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(MachineError, match="is a file"):
        RunFolder.create(tmp_path / "run", "detr")
    with pytest.raises(MachineError):
        RunFolder.create(tmp_path / "run" / "below", "detr")
    with pytest.raises(MachineError):
        RunFolder.create(None, "detr", runs_root=tmp_path / "run")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_f71_read_only_place_is_an_error_of_the_machine(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(MachineError):
            RunFolder.create(tmp_path / "run", "detr")
    finally:
        tmp_path.chmod(0o700)


def test_nothing_to_resume(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="no run to resume"):
            RunFolder.reopen(path)
    assert not list(tmp_path.iterdir())


def test_config_and_manifest_tell_where_the_numbers_came_from(tmp_path: Path) -> None:
    fill(tmp_path)
    config = tiny_config(schedule={"epochs": 7})
    with RunFolder.reopen(tmp_path) as run:
        run.describe(config, DatasetIdentity("other", {"train": "3" * 64}), CPU, ["dedetr", "train", "--resume"])
    assert Config.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text())) == config
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert len(manifest["run_id"]) == 32
    assert manifest["dataset"] == {"name": "other", "sha256": {"train": "3" * 64}}
    first, second = manifest["sessions"]
    assert first["command"] == ["dedetr", "train"]
    assert second["command"] == ["dedetr", "train", "--resume"]
    assert second["num_threads"] == 1
    assert second["versions"]["torch"]
    assert second["versions"]["dedetr"]


def test_latest_leads_to_the_newest_run_wherever_it_is(tmp_path: Path) -> None:
    runs_root = tmp_path / "runs"
    with RunFolder.create(None, "detr", runs_root=runs_root) as first:
        first.mark_latest(runs_root)
        assert pointed_to(runs_root / "latest") == first.path
    with RunFolder.create(tmp_path / "elsewhere" / "b", "detr") as second:
        second.describe(tiny_config(), IDENTITY, CPU, [])
        second.mark_latest(runs_root)
    assert not (runs_root / "latest").readlink().is_absolute()
    with RunFolder.reopen(runs_root / "latest") as again:
        assert again.path == second.path


def test_pointer_as_a_text_file_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "latest").write_text("a\n")
    assert pointed_to(tmp_path / "latest") == tmp_path / "a"
    (tmp_path / "b").mkdir()
    point_to(tmp_path / "latest", tmp_path / "b")
    assert pointed_to(tmp_path / "latest") == tmp_path / "b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "latest"]


def test_pointer_to_nothing_and_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "last").symlink_to("gone")
    assert pointed_to(tmp_path / "last") is None
    assert pointed_to(tmp_path / "missing") is None
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(MachineError):
        point_to(tmp_path / "folder", tmp_path / "folder" / "inner")
    assert (tmp_path / "folder" / "inner").is_dir()

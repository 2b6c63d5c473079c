"""`train --nproc N` and bare torchrun, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import TINY, dedetr, succeed
from tests.test_processes import torchrun
from tests.trainer.test_many_processes import process_of_rank

FEW = [*TINY[2:], "--steps", "2", "--subset", "0.05", "--batch-size", "4"]


def test_two_processes_leave_one_run_and_one_result(trained: Path, tmp_path: Path) -> None:
    done = succeed("train", *FEW, "--nproc", "2", "--out", tmp_path / "run", "--json", cwd=trained)
    result = json.loads(done.stdout)
    assert result["num_steps"] == 2
    assert done.stderr.count("took the recipe") == 1
    assert "2 processes" in done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [session["num_processes"] for session in manifest["sessions"]] == [2]
    alone = json.loads(succeed("eval", "--checkpoint", tmp_path / "run", "--json", cwd=trained).stdout)
    assert alone["evaluation"]["stats"] == pytest.approx(result["evaluation"]["stats"], abs=1e-12)


def test_f62_evaluation_gives_the_same_numbers_on_any_number_of_processes(trained: Path) -> None:
    """Three share 60 images in four batches, so that one of them has more. (Fewer: tests/faults/test_processes.py)"""
    arguments = ["eval", "--checkpoint", "runs/tiny", "--set", "data.batch_size=16", "--json"]
    one, many = (
        json.loads(succeed(*arguments, "--nproc", str(count), cwd=trained).stdout)["evaluation"] for count in (1, 3)
    )
    assert many == one
    assert one["num_detections"] > 0


def test_torchrun_starts_the_same_command(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = torchrun("-m", "dedetr_cli", "train", *FEW, "--out", run, "--json", processes=2, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_steps"] == 2
    assert "2 processes" in done.stderr


def test_f63_f64_the_first_error_is_told_once_with_its_exit_code(trained: Path, tmp_path: Path) -> None:
    """An image that ends too early is found by whichever process reads it, in the middle of a run."""
    shutil.copytree(trained / "data", tmp_path / "data", symlinks=True)
    subset = json.loads(next((tmp_path / "data" / "annotations").glob("train-*.json")).read_text())
    for record in subset["images"][2:]:
        path = tmp_path / "data" / "images" / record["file_name"]
        with Image.open(path) as picture:
            picture = picture.convert("RGB").resize(picture.size)
        picture.save(path)
        path.write_bytes(path.read_bytes()[:-200])
    began = time.monotonic()
    done = dedetr("train", *FEW, "--steps", "30", "--nproc", "2", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    assert time.monotonic() - began < 90


def _started(folder: Path, run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dedetr_cli", "train", *FEW, "--steps", "4000", "--nproc", "2", "--out", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def _wait_for_steps(run: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_text():
            return
        time.sleep(0.2)
    pytest.fail("no step was made")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_command_saves_once_and_stops(
    trained: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    with _started(trained, run) as process:
        _wait_for_steps(run, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.count("saved in") == 1, errors
    assert "Traceback" not in errors
    assert (run / "checkpoints" / "last" / "model.pt").is_file()


def test_f63_a_process_that_is_killed_ends_the_others(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with _started(trained, run) as process:
        _wait_for_steps(run, process)
        os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 5, errors
    assert "process 1 ended by SIGKILL" in errors
    assert errors.count("error:") == 1, errors


def test_f63_processes_whose_command_is_killed_save_and_end(trained: Path, tmp_path: Path) -> None:
    """They would train on, unseen, and keep the folder locked."""
    run = tmp_path / "run"
    with _started(trained, run) as process:
        _wait_for_steps(run, process)
        ranks = [process_of_rank(rank, process.pid) for rank in (0, 1)]
        process.kill()
    deadline = time.monotonic() + 60
    while any(_is_alive(rank) for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert (run / "checkpoints" / "last" / "model.pt").is_file()


def _is_alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_f67_f68_wrong_numbers_of_processes_are_refused(trained: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    done = dedetr("train", *FEW, "--nproc", "4000", "--batch-size", "4000", "--out", tmp_path / "run", cwd=trained)
    assert done.returncode == 2, done.stderr
    assert "too many" in done.stderr
    done = dedetr("train", *FEW, "--nproc", "500", "--out", tmp_path / "run", cwd=trained)
    assert done.returncode == 2, done.stderr
    assert "shared by 500 processes" in done.stderr
    assert time.monotonic() - began < 60  # none of them was started
    torchruns = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    done = dedetr("train", *FEW, "--nproc", "2", "--out", tmp_path / "run", cwd=trained, **torchruns)
    assert done.returncode == 2, done.stderr
    assert "torchrun decides" in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_used_is_left_out_by_all_processes_alike(trained: Path, tmp_path: Path) -> None:
    data = shutil.copytree(trained / "data", tmp_path / "data")
    files = (data / "annotations" / name for name in ("train-5pct-seed0.json", "val.json"))
    train, val = (json.loads(file.read_text())["images"] for file in files)
    (data / "images" / train[3]["file_name"]).write_bytes(b"no image")
    (data / "images" / val[5]["file_name"]).unlink()
    arguments = [*FEW, "--data", data, "--nproc", "2", "--out", tmp_path / "run"]
    assert dedetr("train", *arguments, cwd=tmp_path).returncode == 3
    done = dedetr("train", *arguments, "--set", "data.on_invalid=drop", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train: left out, file that is no image (F22): 1" in done.stderr
    assert "val: left out, image that is missing (F19): 1" in done.stderr
    assert json.loads(done.stdout)["evaluation"]["num_images"] == len(val) - 1

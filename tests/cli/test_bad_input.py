"""What bad input gets: one line, one hint, the promised exit code, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.annotations.conftest import make_coco_layout, make_voc
from tests.cli.conftest import TINY, dedetr


def check(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Require the exit code, one error line, no traceback, and all words."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1, lines
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        pytest.param(["train"], 3, ["data", "hint: ", "prepare-data"], id="missing-data"),
        pytest.param(["eval"], 4, ["runs/latest", "hint: "], id="no-checkpoint"),
        pytest.param(["predict", "images"], 3, ["images: there is no such file"], id="predict-nothing"),
        pytest.param(["predict"], 2, ["inputs"], id="F75-missing-argument"),
        pytest.param(
            ["train", "--model", "dela-der"],
            2,
            ["unknown model 'dela-der'", "did you mean 'dela-detr'?"],
            id="F75-model",
        ),
        pytest.param(["train", "--modle", "detr"], 2, ["--modle", "--model"], id="F75-flag"),
        pytest.param(["trian"], 2, ["trian"], id="F75-command"),
        pytest.param(["train", "--preset", "dem"], 2, ["did you mean 'demo'?"], id="F75-preset"),
        pytest.param(["train", "--set", "data.shortside=3"], 2, ["did you mean 'short_side'?"], id="F75-key"),
        pytest.param(["train", "--lr", "-1"], 2, ["--lr", "greater than 0"], id="F76-negative"),
        pytest.param(["train", "--epochs", "ten"], 2, ["--epochs", "valid integer"], id="F76-type"),
        pytest.param(["subsample", "--rate", "1.5"], 2, ["--rate", "(0, 1]"], id="F76-rate"),
        pytest.param(["subsample", "--rate", "0"], 2, ["--rate"], id="rate-zero"),
        pytest.param(["subsample", "--rate", "nan"], 2, ["--rate"], id="rate-nan"),
        pytest.param(["subsample", "--rate", "0.5"], 3, ["prepare-data"], id="subsample-missing-data"),
        pytest.param(["prepare-data", "nowhere"], 3, ["nowhere"], id="prepare-missing-source"),
        pytest.param(["eval", "--checkpoint", "nowhere.pth"], 4, ["nowhere.pth"], id="missing-weights"),
    ],
)
def test_in_an_empty_folder(tmp_path: Path, arguments: list[str], code: int, words: list[str]) -> None:
    check(dedetr(*arguments, cwd=tmp_path), code, *words)
    assert list(tmp_path.iterdir()) == []


def test_f52_a_run_folder_that_is_not_empty(demo: Path) -> None:
    (demo / "runs" / "full").mkdir(parents=True, exist_ok=True)
    (demo / "runs" / "full" / "mine.txt").write_text("keep me")
    check(dedetr("train", "--out", "runs/full", *TINY, cwd=demo), 2, "runs/full", "--resume", "--overwrite")
    assert (demo / "runs" / "full" / "mine.txt").read_text() == "keep me"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_f72_cuda_asked_for_and_absent(demo: Path) -> None:
    done = dedetr("train", "--out", "runs/cuda", *TINY, "--device", "cuda", cwd=demo)
    check(done, 5, "CUDA", "--device cpu")
    assert not (demo / "runs" / "cuda").exists()


def test_more_repeated_labels_than_queries(demo: Path) -> None:
    done = dedetr("train", "--out", "runs/few", *TINY, "--num-queries", "3", cwd=demo)
    check(done, 2, "num_queries", "images")
    assert not (demo / "runs" / "few").exists()


@pytest.fixture
def copy(demo: Path, tmp_path: Path) -> Path:
    shutil.copytree(demo / "data", tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="F21-zero-byte"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), id="F20-truncated"),
        pytest.param(lambda path: path.write_text("no image"), id="F22-no-image"),
        pytest.param(lambda path: path.unlink(), id="F19-missing"),
    ],
)
def test_an_unreadable_image(copy: Path, damage: object) -> None:
    document = json.loads((copy / "data" / "annotations" / "train.json").read_text())
    name = document["images"][0]["file_name"]
    victim = next(path for path in (copy / "data").rglob(Path(name).name))
    damage(victim)  # type: ignore[operator]
    done = dedetr("train", "--out", "runs/bad", *TINY, cwd=copy)
    check(done, 3, Path(name).name)
    assert not (copy / "runs").exists()


def test_eval_names_an_unreadable_image_before_it_begins(trained: Path, copy: Path) -> None:
    listed = json.loads((copy / "data" / "annotations" / "val.json").read_text())["images"]
    victim = next((copy / "data").rglob(Path(listed[-1]["file_name"]).name))
    victim.write_bytes(victim.read_bytes()[:100])
    check(dedetr("eval", "--checkpoint", trained / "runs" / "tiny", "--data", "data", cwd=copy), 3, victim.name)


def test_class_ids_that_do_not_fit_stop_before_the_first_step(copy: Path) -> None:
    path = copy / "data" / "annotations" / "train.json"
    document = json.loads(path.read_text())
    for annotation in document["annotations"]:
        annotation["category_id"] += 40
    path.write_text(json.dumps(document))
    done = dedetr("train", "--out", "runs/ids", *TINY, cwd=copy)
    check(done, 3, "annotations[0].category_id", "not among the categories")
    assert not (copy / "runs").exists()


def test_images_without_a_single_box(copy: Path) -> None:
    path = copy / "data" / "annotations" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    check(dedetr("train", "--out", "runs/empty", *TINY, cwd=copy), 3, "no box to learn from")
    assert not (copy / "runs").exists()


def test_boxes_written_as_corners_stop_before_the_first_step(copy: Path) -> None:
    path = copy / "data" / "annotations" / "train.json"
    document = json.loads(path.read_text())
    for annotation in document["annotations"]:
        left, top, width, height = annotation["bbox"]
        annotation["bbox"] = [left, top, left + width, top + height]
    path.write_text(json.dumps(document))
    check(dedetr("train", "--out", "runs/xyxy", *TINY, cwd=copy), 3, "corners")
    assert not (copy / "runs").exists()


def test_f52_predict_never_replaces_the_users_files(trained: Path, tmp_path: Path) -> None:
    photographs = tmp_path / "mine"
    shutil.copytree(trained / "images", photographs)
    before = {path.name: path.read_bytes() for path in photographs.iterdir()}
    done = dedetr("predict", photographs, "--out", photographs, cwd=trained)
    check(done, 2, "replace the images themselves")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("keep me")
    check(dedetr("predict", photographs, "--out", tmp_path / "full", cwd=trained), 2, "other files")
    check(dedetr("predict", photographs, "--out", tmp_path / "full" / "thesis.txt", cwd=trained), 5, "is a file")
    assert {path.name: path.read_bytes() for path in photographs.iterdir()} == before
    for _ in range(2):  # its own earlier work it does replace
        assert dedetr("predict", photographs, "--out", tmp_path / "vis", cwd=trained).returncode == 0


def test_unreadable_images_are_named_and_the_rest_is_done(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "images", tmp_path / "mine")
    (tmp_path / "mine" / "broken [red]one.png").write_bytes(b"no image")
    done = dedetr("predict", tmp_path / "mine", "--out", tmp_path / "vis [x]", cwd=trained)
    assert done.returncode == 3, done.stderr
    assert "warning: " in done.stderr
    assert "broken [red]one.png" in done.stderr
    assert "vis [x]" in done.stdout
    assert (tmp_path / "vis [x]" / "predictions.json").is_file()


def test_f79_a_reader_that_goes_away_is_no_error(trained: Path) -> None:
    command = f"{sys.executable} -m dedetr_cli eval --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=trained, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_f78_a_signal_saves_and_stops(demo: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "dedetr_cli", "train", "--out", str(tmp_path / "run"), *TINY, "--epochs", "500"]
    with subprocess.Popen(command, cwd=demo, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 1 step"):
                break
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == code, rest
    errors = [line for line in rest.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "--resume" in rest
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.pt").is_file()


def test_f80_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    done = dedetr("prepare-data", "--out", "dätä 数", cwd=tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dätä 数" / "dataset.yaml").is_file()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = dedetr("train", "--debug", cwd=tmp_path)
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_help_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    for command in ([], ["train"], ["predict"], ["subsample"]):
        done = dedetr(*command, "--help", cwd=tmp_path, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout


def test_prepare_and_subsample_need_no_torch(tmp_path: Path) -> None:
    for package in ("torch", "torchvision"):
        (tmp_path / f"{package}.py").write_text(f"raise SystemExit('{package} was imported')")
    make_coco_layout(tmp_path / "coco")
    make_voc(tmp_path / "voc")
    for command in (
        ["prepare-data"],
        ["prepare-data", "coco", "--out", "from-coco", "--copy-images"],
        ["prepare-data", "voc", "--out", "from-voc", "--json"],
        ["subsample", "--rate", "0.1"],
        ["subsample", "--rate", "0.5", "--data", "coco", "--json"],
    ):
        done = dedetr(*command, cwd=tmp_path, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
    assert "torch was imported" in dedetr("train", cwd=tmp_path, PYTHONPATH=str(tmp_path)).stderr

"""The main job as a user types it: prepare, subsample, train, eval, predict, visualize."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.conftest import TINY, dedetr, succeed
from tests.golden_files import Golden
from tests.models.test_weights import synthetic_checkpoint


def test_prepare_writes_data_and_pictures(demo: Path) -> None:
    assert (demo / "data" / "dataset.yaml").is_file()
    assert len(list((demo / "images").iterdir())) >= 3


def test_the_run_folder_holds_what_the_design_says(trained: Path) -> None:
    run = trained / "runs" / "tiny"
    for name in (
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "checkpoints/last/model.pt",
        "checkpoints/best/model.pt",
    ):
        assert (run / name).exists(), name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"train", "eval"}


def test_train_says_which_recipe_and_which_images_it_took(demo: Path, tmp_path: Path) -> None:
    done = succeed("train", "--out", tmp_path / "run", *TINY, cwd=demo)
    assert "took the recipe 'demo'" in done.stderr
    assert "240 images, the train split" in done.stderr
    weightless = ["train", "--preset", "none", "--out", "runs/none", "--model", "detr"]
    done = dedetr(*weightless, cwd=demo, TORCH_HOME=str(tmp_path / "empty"))
    assert done.returncode == 5, done.stderr
    assert "resnet50-0676ba61.pth" in done.stderr
    assert not (demo / "runs" / "none").exists()


def test_eval_says_what_the_run_said(trained: Path) -> None:
    numbers = json.loads(succeed("eval", "--checkpoint", "runs/tiny/checkpoints/last", "--json", cwd=trained).stdout)
    assert numbers["schema_version"] == 1
    rows = [json.loads(line) for line in (trained / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert numbers["evaluation"]["stats"] == rows[-1]["stats"]
    assert len(rows[-1]["stats"]) == 12
    assert json.loads((trained / "runs" / "tiny" / "eval" / "val.json").read_text())["split"] == "val"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_checkpoint_knows_its_data_wherever_it_is_used(trained: Path, tmp_path: Path, elsewhere: bool) -> None:
    done = succeed("eval", "--checkpoint", trained / "runs" / "tiny", "--json", cwd=tmp_path if elsewhere else trained)
    assert json.loads(done.stdout)["data"] == str(trained / "data")


def test_predict_leaves_pictures_json_and_csv_by_falling_score(trained: Path) -> None:
    succeed("predict", "images/", "--threshold", "0.0", "--out", "vis/", cwd=trained)
    sources = sorted(path.name for path in (trained / "images").iterdir())
    pictures = sorted(path for path in (trained / "vis").iterdir() if path.suffix in {".png", ".jpg"})
    assert len(pictures) == len(sources)
    for picture in pictures:
        with Image.open(picture) as opened:
            opened.load()
    results = json.loads((trained / "vis" / "predictions.json").read_text())
    by_image: dict[int, list[float]] = {}
    for result in results:
        assert {"image_id", "category_id", "bbox", "score"} <= result.keys()
        by_image.setdefault(result["image_id"], []).append(result["score"])
    assert by_image
    assert all(scores == sorted(scores, reverse=True) for scores in by_image.values())
    with (trained / "vis" / "predictions.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(results)
    fewer = succeed("predict", "images/", "--threshold", "1.0", "--out", "vis-none", "--json", cwd=trained)
    assert json.loads(fewer.stdout)["num_detections"] == 0


def test_visualize_draws_pairs_and_curves(trained: Path) -> None:
    done = succeed("visualize", "--num-images", "2", "--json", cwd=trained)
    pictures = [trained / path for path in json.loads(done.stdout)["pictures"]]
    assert len(pictures) == 3
    for picture in pictures:
        with Image.open(picture) as opened:
            opened.load()


def test_a_run_goes_on_with_more_epochs_only_when_told(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "tiny", run, symlinks=True)
    done = dedetr("train", "--resume", "--out", run, "--epochs", "2", cwd=trained)
    assert done.returncode == 2, done.stderr
    assert "schedule.epochs was 1, now 2" in done.stderr
    done = succeed("train", "--resume", "--override", "--out", run, "--epochs", "2", "--json", cwd=trained)
    assert json.loads(done.stdout)["num_epochs"] == 2
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["kind"] == "eval"] == [1, 2]


def test_weights_of_an_earlier_run_start_another(trained: Path, tmp_path: Path) -> None:
    weights = "runs/tiny/checkpoints/best"
    done = succeed("train", "--weights", weights, "--out", tmp_path / "run", "--subset", "0.05", *TINY, cwd=trained)
    assert "classes kept: circle, cross, ring, square, star, triangle; new: none" in done.stderr


def test_a_reference_checkpoint_is_scored_and_trained_from(demo: Path, tmp_path: Path) -> None:
    """Synthetic: the reference's keys and flags around recorded weights and a random ResNet-10."""
    torch.save(synthetic_checkpoint(Golden("dela-detr")), tmp_path / "reference.pth")
    small = ["--set", "data.short_side=64", "--set", "data.max_long_side=96"]
    done = succeed(
        "eval", "--checkpoint", tmp_path / "reference.pth", "--data", "other", "--json", *small, cwd=other(demo)
    )
    assert json.loads(done.stdout)["evaluation"]["stats"]["AP"] >= 0
    assert "rows of its head" in done.stderr
    settings = ["hidden_dim=32", "num_heads=4", "num_encoder_layers=2", "num_decoder_layers=3", "feedforward_dim=64"]
    model = [part for setting in [*settings, "num_queries=40"] for part in ("--set", f"model.{setting}")]
    done = succeed(
        "train", "--weights", tmp_path / "reference.pth", "--out", tmp_path / "run", "--subset", "0.05", *TINY, *model,
        cwd=demo,
    )  # fmt: skip
    assert "classes kept: none; new: circle" in done.stderr


def other(demo: Path) -> Path:
    """Give the demo set the names that the reference's head of nine rows has."""
    if not (demo / "other").exists():
        shutil.copytree(demo / "data", demo / "other")
        for file in [demo / "other" / "dataset.yaml", *(demo / "other" / "annotations").glob("*.json")]:
            text = file.read_text()
            for ours, theirs in zip(SHAPES, CITYSCAPES, strict=True):
                text = text.replace(f'"{ours}"', f'"{theirs}"').replace(f"name: {ours}", f"name: {theirs}")
            file.write_text(text)
    return demo


SHAPES = ("circle", "cross", "ring", "square", "star", "triangle")
CITYSCAPES = ("person", "car", "train", "rider", "truck", "motorcycle")

"""The main job as a user types it: prepare, subsample, train, eval, predict, visualize."""

from __future__ import annotations

import csv
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.cli.conftest import TINY, dedetr, succeed


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
    assert (trained / "runs" / "latest").resolve() == run.resolve()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"train", "eval"}


def test_train_says_which_recipe_and_which_images_it_took(demo: Path) -> None:
    done = succeed("train", "--out", "runs/said", "--overwrite", *TINY, cwd=demo)
    assert "recipe 'demo'" in done.stderr
    assert "all" in done.stderr
    done = dedetr("train", "--preset", "none", "--out", "runs/none", "--model", "detr", cwd=demo)
    assert done.returncode == 5, done.stderr
    assert "resnet50" in done.stderr
    assert not (demo / "runs" / "none").exists()


def test_eval_equals_pycocotools_on_the_predictions(trained: Path) -> None:
    numbers = json.loads(succeed("eval", "--json", cwd=trained).stdout)
    assert numbers["schema_version"] == 1
    ours = numbers["result"]["stats"]
    assert len(ours) == 12

    annotation_file = trained / "data" / "annotations" / "val.json"
    listed = json.loads(annotation_file.read_text())
    prepared_images = sorted({str(trained / "data" / "images" / image["file_name"]) for image in listed["images"]})
    assert all(Path(path).is_file() for path in prepared_images)
    succeed(
        "predict",
        *prepared_images,
        "--threshold",
        "0",
        "--no-pictures",
        "--batch-size",
        "1",
        "--out",
        "vis-val",
        cwd=trained,
    )
    ids = {image["file_name"].rsplit("/")[-1]: image["id"] for image in listed["images"]}
    results = json.loads((trained / "vis-val" / "predictions.json").read_text())
    for result in results:
        result["image_id"] = ids[Path(result["file_name"]).name]
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # Padding to a common size and clipping to the image move scores and boxes a little.
    assert ours["AP50"] == pytest.approx(evaluation.stats[1], abs=0.02)


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


def test_a_finished_run_resumes_to_more_epochs_only_when_told(trained: Path) -> None:
    done = dedetr("train", "--resume", "--out", "runs/tiny", "--epochs", "2", cwd=trained)
    assert done.returncode == 2, done.stderr
    assert "schedule.epochs" in done.stderr


def test_weights_of_an_earlier_run_start_another(trained: Path) -> None:
    weights = "runs/tiny/checkpoints/best"
    done = succeed("train", "--weights", weights, "--out", "runs/again", "--subset", "0.05", *TINY, cwd=trained)
    assert "weights" in done.stderr

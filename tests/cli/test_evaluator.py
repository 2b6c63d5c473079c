"""`run.evaluator` of the real commands: the same numbers from whoever computes them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from core.api import load_detector
from tests.cli.conftest import TINY, dedetr


@pytest.fixture(scope="module")
def without_hotcoco(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for PYTHONPATH that hides hotcoco."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "hotcoco.py").write_text("raise ModuleNotFoundError(\"No module named 'hotcoco'\")\n")
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def _data_that_fits(trained: Path, folder: Path) -> Path:
    """Copy the data set, and annotate its val images near what the model, which has learnt nothing yet, finds there.

    One class alone, its most frequent one: the AP of a class with a handful of boxes would be a matter of luck.
    """
    data = shutil.copytree(trained / "data", folder / "data")
    file = data / "annotations" / "val.json"
    document = json.loads(file.read_text())
    images = document["images"]
    detector = load_detector(trained / "runs" / "tiny", device="cpu")
    annotations = []
    found = detector.predict([data / "images" / image["file_name"] for image in images], threshold=0.0)
    label = int(torch.cat([prediction.labels for prediction in found]).mode().values)
    for image, prediction in zip(images, found, strict=True):
        by_score = prediction.scores.argsort(descending=True)
        for row in by_score[prediction.labels[by_score] == label][::2].tolist():
            left, top, right, bottom = prediction.boxes_xyxy_px[row].tolist()
            left, top = max(left + row % 3, 0.0), max(top - row % 5, 0.0)
            width, height = min(right, image["width"]) - left, min(bottom, image["height"]) - top
            if width < 1 or height < 1:
                continue
            number = len(annotations) + 1
            annotations.append(
                {
                    "id": number,
                    "image_id": image["id"],
                    "category_id": label + 1,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": int(number % 10 == 0),
                }
            )
    file.write_text(json.dumps(document | {"annotations": annotations}))
    return data


def test_eval_says_the_same_with_both(trained: Path, without_hotcoco: str, tmp_path: Path) -> None:
    pytest.importorskip("hotcoco")
    arguments = ["eval", "--json", "--data", _data_that_fits(trained, tmp_path)]
    fast = dedetr(*arguments, cwd=trained)
    reference = dedetr(*arguments, cwd=trained, PYTHONPATH=without_hotcoco)
    assert "scored by hotcoco" in " ".join(fast.stderr.split())
    assert "scored by pycocotools" in " ".join(reference.stderr.split())
    assert fast.stdout == reference.stdout
    stats = json.loads(fast.stdout)["evaluation"]["stats"]
    assert len(stats) == 12
    assert 0 < stats["AP"] < stats["AP50"]


@pytest.mark.parametrize("command", ["eval", "train"])
def test_an_absent_hotcoco_is_refused_before_any_work(
    trained: Path, without_hotcoco: str, tmp_path: Path, command: str
) -> None:
    arguments = [*TINY, "--out", tmp_path / "run"] if command == "train" else []
    done = dedetr(command, *arguments, "--set", "run.evaluator=hotcoco", cwd=trained, PYTHONPATH=without_hotcoco)
    assert done.returncode == 5
    assert "hotcoco is not installed" in done.stderr
    assert "pip install 'dedetr[fast-eval]'" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()

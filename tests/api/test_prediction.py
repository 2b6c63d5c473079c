"""What `predict` writes into its folder, and what it leaves alone there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.api import PredictionOutcome, predict
from core.errors import UsageError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "vis"


def _predict(run: Path, images: list[Path], out: Path, **options: Any) -> PredictionOutcome:
    settings: dict[str, Any] = {"threshold": 0.2, "pictures": False, "device": "cpu"} | options
    return predict(images, out=out, checkpoint=run, **settings)


def test_labels_and_crops_say_what_the_json_says(run: Path, files: list[Path], out: Path) -> None:
    outcome = _predict(run, files, out, yolo=True, crops=True, batch_size=2)
    entries = json.loads((out / "predictions.json").read_text())
    names = (out / "labels" / "classes.txt").read_text().splitlines()
    assert names == ["red", "green", "blue"]
    assert len(outcome.crops) == outcome.num_detections == len(entries) > 0
    assert len(outcome.labels) == len(files)
    for image, label_file in zip(files, outcome.labels, strict=True):
        assert label_file == out / "labels" / f"{image.stem}.txt"
        rows = [line.split() for line in label_file.read_text().splitlines()]
        mine = [entry for entry in entries if entry["file_name"] == image.as_posix()]
        assert [names[int(row[0])] for row in rows] == [entry["category_name"] for entry in mine]
        with Image.open(image) as opened:
            width, height = opened.size
        for number, (row, entry) in enumerate(zip(rows, mine, strict=True), start=1):
            center_x, center_y, box_width, box_height, score = map(float, row[1:])
            left, top = (center_x - box_width / 2) * width, (center_y - box_height / 2) * height
            assert [left, top, box_width * width, box_height * height] == pytest.approx(entry["bbox"], abs=0.01)
            assert score == pytest.approx(entry["score"], abs=1e-6)
            crop = out / "crops" / entry["category_name"] / f"{image.stem}-{number}.jpg"
            assert crop in outcome.crops
            with Image.open(crop) as opened:
                assert 0 <= opened.width - entry["bbox"][2] < 2


def test_a_later_prediction_removes_what_it_does_not_write_again_and_no_more(
    run: Path, files: list[Path], out: Path
) -> None:
    first = _predict(run, files, out, yolo=True, crops=True, pictures=True)
    seen = sorted({path.parent.name for path in first.crops})
    (out / "mine.txt").write_text("keep me")
    (out / "crops" / seen[0] / "mine.txt").write_text("keep me")
    second = _predict(run, files[:1], out, classes=seen[:1])
    entries = json.loads((out / "predictions.json").read_text())
    assert {entry["category_name"] for entry in entries} <= {seen[0]}
    assert second.num_detections == len(entries)
    left = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    ours = ["manifest.json", "mine.txt", "predictions.csv", "predictions.json"]
    assert left == [f"crops/{seen[0]}/mine.txt", *ours]
    with pytest.raises(UsageError, match="mixed with"):
        _predict(run, files, out, crops=True)


def test_an_unknown_class_is_named_before_anything_is_written(run: Path, files: list[Path], out: Path) -> None:
    with pytest.raises(UsageError, match="no class 'gren'") as caught:
        _predict(run, files, out, classes=["red", "gren"])
    assert caught.value.hint == "did you mean 'green'?"
    assert not out.exists()


def test_images_of_one_name_get_files_of_their_own(run: Path, files: list[Path], out: Path) -> None:
    images = [out.parent / name for name in ("a/same.png", "b/same.png", "a/same.jpg")]
    for source, image in zip(files, images, strict=True):
        image.parent.mkdir(exist_ok=True)
        shutil.copy(source, image)
    outcome = _predict(run, images, out, yolo=True, pictures=True)
    assert [path.name for path in outcome.pictures] == ["same.png", "same-2.png", "same-3.jpg"]
    assert [path.name for path in outcome.labels] == ["same.txt", "same-2.txt", "same-3.txt"]


def test_crops_are_not_removed_while_they_are_looked_at(run: Path, files: list[Path], out: Path) -> None:
    crops = list(_predict(run, files, out, crops=True).crops)
    with pytest.raises(UsageError, match="replace the images themselves"):
        _predict(run, crops, out)
    assert all(path.is_file() for path in crops)


def test_a_file_put_beside_earlier_pictures_is_not_replaced(run: Path, files: list[Path], out: Path) -> None:
    _predict(run, files, out)
    (out / files[0].name).write_text("keep me")
    with pytest.raises(UsageError, match="not of an earlier prediction"):
        _predict(run, files, out, pictures=True)
    assert (out / files[0].name).read_text() == "keep me"


def test_unreadable_images_have_no_label_file(run: Path, files: list[Path], out: Path) -> None:
    broken = out.parent / "broken.png"
    broken.write_bytes(b"no image")
    outcome = _predict(run, [broken, *files], out, yolo=True, crops=True, threshold=1.0)
    assert [path.stem for path in outcome.labels] == [path.stem for path in files]
    assert not (out / "labels" / "broken.txt").exists()
    assert all(path.read_bytes() == b"" for path in outcome.labels)
    assert len(outcome.unreadable) == 1

"""What a notebook does: load a detector, show it images of any kind, look at what it found."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from core.api import Prediction, TrainedDetector, load_detector, predict
from core.errors import DataError, UsageError


@pytest.fixture(scope="module")
def detector(run: Path) -> TrainedDetector:
    return load_detector(run, device="cpu")


def _array(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _equal(one: Prediction, other: Prediction) -> bool:
    parts = ("boxes_xyxy_px", "scores", "labels")
    return len(one) > 0 and all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)


@pytest.mark.parametrize(
    "as_kind",
    [
        pytest.param(str, id="text"),
        pytest.param(Image.open, id="pil"),
        pytest.param(lambda path: Image.open(path).convert("RGBA"), id="pil-rgba"),
        pytest.param(_array, id="numpy"),
        pytest.param(lambda path: np.ascontiguousarray(_array(path)[..., ::-1])[..., ::-1], id="numpy-view"),
        pytest.param(lambda path: torch.tensor(_array(path)).permute(2, 0, 1), id="torch"),
    ],
)
def test_all_kinds_of_image_give_the_same(
    detector: TrainedDetector, files: list[Path], as_kind: Callable[[Path], Any]
) -> None:
    expected = detector.predict(files[0], threshold=0.0)
    found = detector.predict(as_kind(files[0]), threshold=0.0)
    assert _equal(found, expected)
    assert found.size_wh == Image.open(files[0]).size


def test_the_numbers_are_those_of_the_command(detector: TrainedDetector, run: Path, files: list[Path]) -> None:
    outcome = predict(files, out=run.parent / "out", checkpoint=run, threshold=0.3, device="cpu", yolo=True)
    found = detector.predict([_array(path) for path in files], threshold=0.3, batch_size=3)
    assert sum(len(each) for each in found) == outcome.num_detections > 0
    for prediction, labels in zip(found, outcome.labels, strict=True):
        rows = [line.split() for line in labels.read_text().splitlines()]
        assert [int(row[0]) for row in rows] == prediction.labels.tolist()
        assert [float(row[5]) for row in rows] == pytest.approx(prediction.scores.tolist(), abs=1e-5)


def test_one_image_gives_one_result_and_a_list_a_list(detector: TrainedDetector, files: list[Path]) -> None:
    assert isinstance(detector.predict(files[0]), Prediction)
    (found,) = detector.predict([files[0]])
    assert isinstance(found, Prediction)
    assert detector.classes == ("red", "green", "blue")


def test_a_prediction_says_what_it_holds(detector: TrainedDetector, files: list[Path]) -> None:
    found = detector.predict(files[0], threshold=0.0)
    assert found.class_names == [detector.classes[label] for label in found.labels.tolist()]
    assert sorted(found.scores.tolist(), reverse=True) == found.scores.tolist()
    assert str(found).startswith("Prediction(")
    assert str(detector.predict(files[0], threshold=1.0)) == "Prediction(nothing)"
    only = detector.predict(files[0], threshold=0.0, classes=[found.class_names[0]])
    assert set(only.class_names) == {found.class_names[0]}


def test_nms_can_be_switched(run: Path, files: list[Path]) -> None:
    few = load_detector(str(run), nms=True, nms_iou=0.0, device="cpu").predict(files[0], threshold=0.05)
    many = load_detector(str(run), nms=False, device="cpu").predict(files[0], threshold=0.05)
    assert len(few) < len(many)


def test_a_prediction_is_drawn(detector: TrainedDetector, files: list[Path]) -> None:
    found = detector.predict(_array(files[0]), threshold=0.0)
    picture = found.draw()
    assert picture.size == found.size_wh
    assert not np.array_equal(np.asarray(picture), _array(files[0]))
    assert found.draw(files[0]).tobytes() == picture.tobytes()
    with Image.open(io.BytesIO(found._repr_png_())) as shown:
        assert shown.size == found.size_wh
    with pytest.raises(UsageError, match="expected an image of"):
        found.draw(Image.new("RGB", (7, 9)))


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((4, 5, 3)), "numpy array (4, 5, 3) float64"),
        (np.zeros((4, 5), np.uint8), "numpy array (4, 5) uint8"),
        (np.zeros((3, 4, 5), np.uint8), "numpy array (3, 4, 5) uint8"),
        (np.zeros((0, 5, 3), np.uint8), "numpy array (0, 5, 3) uint8"),
        (np.zeros((2, 4, 5, 3), np.uint8), "numpy array (2, 4, 5, 3) uint8"),
        (torch.zeros(3, 4, 5), "torch tensor (3, 4, 5) float32"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), "torch tensor (4, 5, 3) uint8"),
        (None, "NoneType"),
        ([], "no image in the list"),
        ([["a.png"]], "list"),
    ],
)
def test_what_is_no_image_is_refused_and_the_right_kinds_named(detector: TrainedDetector, image: Any, got: str) -> None:
    with pytest.raises(UsageError) as caught:
        detector.predict(image)
    assert got in caught.value.message
    assert "numpy array (H, W, 3) uint8" in caught.value.message  # all that Python shows of it


def test_other_wrong_arguments(detector: TrainedDetector, files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="threshold"):
        detector.predict(files, threshold=1.5)
    with pytest.raises(UsageError, match="batch_size"):
        detector.predict(files, batch_size=0)
    with pytest.raises(UsageError, match="no class 'rad'") as caught:
        detector.predict(files, classes=["rad"])
    assert caught.value.hint == "did you mean 'red'?"
    with pytest.raises(UsageError, match="no class is named"):
        detector.predict(files, classes=[])
    with pytest.raises(DataError, match="missing"):
        detector.predict(tmp_path / "missing.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(files[0].read_bytes()[:120])
    for image in (cut, Image.open(cut)):
        with pytest.raises(DataError):
            detector.predict(image)

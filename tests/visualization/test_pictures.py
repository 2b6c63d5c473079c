"""Pictures as files: named after their image, large enough to read, written whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from core.structures import Detections
from core.visualization.pictures import draw_comparison, draw_prediction, picture_paths

FOUND = Detections(torch.tensor([[2.0, 2.0, 8.0, 6.0]]), torch.tensor([0.9]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((20, 10), (800, 400)), ((640, 480), (640, 480)), ((1000, 10), (2000, 20)), ((3000, 9), (3000, 9))],
)
def test_small_images_are_enlarged_within_reason(tmp_path: Path, size: tuple[int, int], drawn: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "image.png")
    draw_prediction(tmp_path / "image.png", FOUND, ["thing"], tmp_path / "out" / "picture.png")
    with Image.open(tmp_path / "out" / "picture.png") as picture:
        assert picture.size == drawn


def test_boxes_are_enlarged_with_their_image(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "image.png")
    draw_prediction(tmp_path / "image.png", FOUND, ["thing"], tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        left, top, right, bottom = picture.getbbox() or (0, 0, 0, 0)
    assert left == pytest.approx(80, abs=4)
    assert (right, bottom) == pytest.approx((320, 240), abs=4)
    assert top <= 80


def test_a_comparison_has_both_sides(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "image.png")
    boxes, labels = torch.tensor([[10.0, 10.0, 200.0, 100.0]]), torch.tensor([0])
    draw_comparison(tmp_path / "image.png", boxes, labels, FOUND, ["thing"], tmp_path / "picture.jpg")
    with Image.open(tmp_path / "picture.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.width > 2 * 640


def test_equal_names_are_numbered() -> None:
    images = [Path("a/x.jpg"), Path("b/x.jpeg"), Path("c/x.png"), Path("d/x.bmp")]
    names = [path.name for path in picture_paths(Path("out"), images)]
    assert names == ["x.jpg", "x-2.jpg", "x-3.png", "x-4.png"]  # labels and crops are numbered alike

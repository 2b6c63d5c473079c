"""Where the picture of attention puts what was recorded."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from core.visualization.attention import draw_attention
from core.visualization.recording import AttentionRecord, DenseLayer, QueryAnswers, SparseLayer

NAMES = ["cat", "$x_2$ [b]\x1b\n", "猫"]
SIZE = (320, 240)
FOOTER_PX = 100


def answers(num_layers: int, labels: tuple[int, ...] = (0,)) -> QueryAnswers:
    shape = (num_layers, len(labels))
    return QueryAnswers(
        query_index=torch.arange(len(labels)),
        scores=torch.full(shape, 0.5),
        labels=torch.tensor(labels).expand(shape),
        boxes_xyxy_norm=torch.tensor([0.4, 0.4, 0.6, 0.6]).expand(*shape, 4),
    )


def dense(row: int, column: int) -> DenseLayer:
    weights = torch.zeros(1, 2, 3, 6, 8)
    weights[..., row, column] = 1
    return DenseLayer(weights, stride=20)


def sparse(level: int, row: int, column: int, num_levels: int = 3) -> SparseLayer:
    weights = torch.zeros(1, 2, 3, num_levels, 4, 4)
    weights[..., level, row, column] = 1
    box = torch.tensor([40.0, 30.0, 120.0, 90.0]).expand(1, 3, 4)
    return SparseLayer(weights, box, strides=(8, 16, 32, 64)[:num_levels])


def drawn(
    *layers: DenseLayer | SparseLayer, labels: tuple[int, ...] = (0,), size: tuple[int, int] = SIZE
) -> np.ndarray:
    """Draw on a grey image that the model saw at half its size."""
    record = AttentionRecord(list(layers), torch.tensor([[120, 160]]))
    picture = draw_attention(Image.new("RGB", size, (90, 90, 90)), record, answers(len(layers), labels), NAMES)
    return np.asarray(picture).astype(int)[:-FOOTER_PX]


def centre(picture: np.ndarray, color: tuple[int, int, int]) -> tuple[float, float]:
    rows, columns = np.nonzero(np.abs(picture - np.array(color)).sum(-1) < 12)
    return float(columns.mean()), float(rows.mean())


def hottest(picture: np.ndarray) -> tuple[float, float]:
    """Return the middle of what is more red than blue, without the yellow lines."""
    heat = (picture[..., 0] - picture[..., 2] > 60) & (picture[..., 1] < 130)
    rows, columns = np.nonzero(heat)
    return float(columns.mean()), float(rows.mean())


def test_a_map_is_hot_where_the_cell_is() -> None:
    top_left, top_right, bottom_left = (hottest(drawn(dense(*cell))) for cell in ((1, 1), (1, 6), (4, 1)))
    # Cells are 20 of 160 pixels apart, and the image is 3 inches of 130 pixels wide.
    assert top_right[0] - top_left[0] == pytest.approx(5 * 20 / 160 * 390, abs=4)
    assert top_right[1] == pytest.approx(top_left[1], abs=2)
    assert bottom_left[1] - top_left[1] == pytest.approx(3 * 20 / 160 * 390, abs=4)


@pytest.mark.parametrize(("level", "color"), [(0, (29, 122, 214)), (1, (230, 57, 70)), (2, (46, 160, 67))])
def test_the_token_that_is_looked_at_has_the_marker(level: int, color: tuple[int, int, int]) -> None:
    places = {}
    for cell in ((0, 0), (0, 3), (3, 0)):
        picture = drawn(sparse(level, *cell))
        places[cell] = centre(picture[:-40], color)  # above the texts
        others = {(29, 122, 214), (230, 57, 70), (46, 160, 67)} - {color}
        assert all((np.abs(picture[:-40] - np.array(other)).sum(-1) < 12).sum() == 0 for other in others)
    right, down = places[0, 3][0] - places[0, 0][0], places[3, 0][1] - places[0, 0][1]
    assert right > 100
    assert down == pytest.approx(right * 60 / 80, rel=0.05)  # bins have the box's shape
    assert places[0, 3][1] == pytest.approx(places[0, 0][1], abs=1.5)


def test_the_share_of_each_level_is_written() -> None:
    below = [drawn(sparse(level, 1, 1))[-40:] for level in (0, 1)]
    assert (below[0] != below[1]).any()
    assert (np.abs(below[0] - np.array((29, 122, 214))).sum(-1) < 60).any()


@pytest.mark.parametrize("num_levels", [1, 3, 4])
@pytest.mark.parametrize("size", [(320, 240), (2, 300), (300, 1)])
def test_odd_names_images_and_levels_are_drawn(num_levels: int, size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = drawn(dense(0, 0), sparse(num_levels - 1, 0, 0, num_levels), size=size)
        three = drawn(dense(0, 0), sparse(0, 0, 0, num_levels), labels=(0, 1, 2), size=size)
    assert three.shape[0] > 2 * one.shape[0]
    assert three.shape[1] == one.shape[1]


def test_a_box_outside_the_image_is_drawn() -> None:
    layer = sparse(0, 0, 0)
    away = SparseLayer(layer.weights, layer.boxes_xyxy_px - 5000, layer.strides)
    assert drawn(dense(0, 0), away).size
    nowhere = SparseLayer(layer.weights, layer.boxes_xyxy_px * 0, layer.strides)
    assert drawn(dense(0, 0), nowhere).size


def test_matplotlib_keeps_no_figures() -> None:
    drawn(dense(0, 0))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()

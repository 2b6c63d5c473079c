from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from core.visualization.draw import class_color, draw_detections, draw_outline, place_chip, readable_on, side_by_side

NAMES = ["cat", "dog", "ein sehr langer Klassenname", "[red]x[/red]\x1b[31m\n", "猫"]


def _grey(width: int = 200, height: int = 150) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def _is_color(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(picture) == np.array(color)).all(-1)


def test_a_box_is_drawn_along_its_edges_in_the_colour_of_its_class() -> None:
    image = _grey(480, 480)
    drawn = draw_detections(
        image, torch.tensor([[100.0, 200, 300, 400]]), torch.tensor([1]), torch.tensor([0.9]), NAMES
    )
    found = _is_color(drawn, class_color(1))
    for y in (250, 300, 399):
        assert found[y, [100, 299]].all()
    for x in (150, 250):
        assert found[[200, 399], x].all()
    assert not found[220:380, 120:280].any()  # not filled
    assert not found[:, 310:].any()
    assert not found[410:].any()
    assert (np.asarray(image) == 128).all()  # a copy


@pytest.mark.parametrize("box", [(100, 200, 299, 399), (10, 10, 17, 400), (5, 5, 6, 6), (30, 40, 30, 40)])
def test_a_dashed_outline_has_gaps_and_stays_in_its_box(box: tuple[int, int, int, int]) -> None:
    image, (left, top, right, bottom) = _grey(480, 480), box
    draw_outline(ImageDraw.Draw(image), box, class_color(1), 2, dashed=True)
    found = _is_color(image, class_color(1))
    assert found[[top, top, bottom, bottom], [left, right, left, right]].all()  # the corners
    for edge in (found[top, left : right + 1], found[top : bottom + 1, left]):
        if len(edge) > 100:
            assert 0.4 < edge.mean() < 0.7
    found[top : bottom + 1, left : right + 1] = False
    assert not found.any()


def test_lines_and_letters_grow_with_the_image() -> None:
    widths, heights = [], []
    for scale in (1, 4):
        box = torch.tensor([[100.0, 100, 200, 200]]) * scale
        drawn = draw_detections(_grey(320 * scale, 300 * scale), box, torch.tensor([0]), None, NAMES)
        found = _is_color(drawn, class_color(0))
        widths.append(int(found[150 * scale, 80 * scale : 150 * scale].sum()))
        heights.append(int(found[: 100 * scale - 2, 105 * scale].sum()))
    assert widths[1] >= 3 * widths[0]
    assert heights[1] >= 2 * heights[0]


@pytest.mark.parametrize(
    "box",
    [
        [-50.0, -50, 400, 400],
        [190, 140, 260, 220],
        [0, 0, 3, 3],
        [199, 149, 200, 150],
        [-30, 20, -10, 40],
        [50, 400, 60, 500],
        [70, 70, 70, 70],
    ],
)
@pytest.mark.parametrize("size", [(200, 150), (12, 9), (1, 1)])
def test_boxes_over_the_edge_and_tiny_images_are_drawn(box: list[float], size: tuple[int, int]) -> None:
    for label in range(len(NAMES)):
        drawn = draw_detections(_grey(*size), torch.tensor([box]), torch.tensor([label]), torch.tensor([0.5]), NAMES)
        assert drawn.size == size


def test_chips_stay_inside_and_do_not_cover_each_other() -> None:
    rng = random.Random(0)
    size, chip = (640, 480), (70, 20)
    taken: list[tuple[int, int, int, int]] = []
    for row in range(4):
        for column in range(6):
            left, top = column * 105 + rng.randint(0, 20), row * 115
            place = place_chip((left, top, left + 90, top + 70), chip, size, taken)
            assert 0 <= place[0] <= place[2] < size[0]
            assert 0 <= place[1] <= place[3] < size[1]
            taken.append(place)
    twice = place_chip((0, 0, 90, 70), chip, size, taken)
    taken.append(twice)
    for a, b in itertools.combinations(taken, 2):
        assert a[0] > b[2] or b[0] > a[2] or a[1] > b[3] or b[1] > a[3]


def test_the_surest_detection_is_on_top() -> None:
    box = torch.tensor([[20.0, 40, 150, 140]] * 2)
    for scores, top in (((0.9, 0.2), 0), ((0.2, 0.9), 1)):
        drawn = draw_detections(_grey(), box, torch.tensor([0, 1]), torch.tensor(scores), NAMES)
        assert _is_color(drawn, class_color(top))[90, 20]


def test_colours_are_stable_and_distinct() -> None:
    colors = [class_color(label) for label in range(100)]
    assert colors == [class_color(label) for label in range(100)]
    assert len(set(colors)) > 95
    for first, second in itertools.pairwise(colors):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 60


def test_text_contrasts_with_its_chip() -> None:
    def luminance(color: tuple[int, int, int]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for label in range(200):
        chip = class_color(label)
        low, high = sorted((luminance(chip), luminance(readable_on(chip))))
        assert (high + 0.05) / (low + 0.05) > 4, label


def test_no_boxes_leave_the_image_as_it_is() -> None:
    drawn = draw_detections(_grey(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), NAMES)
    assert np.array_equal(np.asarray(drawn), np.asarray(_grey()))


def test_side_by_side_shows_both_pictures_whole() -> None:
    left, right = _grey(), Image.new("RGB", (200, 150), (10, 200, 10))
    both = side_by_side(left, right, ("ground truth", "prediction\x1b[0m"))
    pixels = np.asarray(both)
    assert np.array_equal(pixels[-150:, :200], np.asarray(left))
    assert np.array_equal(pixels[-150:, -200:], np.asarray(right))
    assert (pixels[:-150] > 200).any()  # the captions

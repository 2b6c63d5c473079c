from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from core.config.schema import LabelAugmentationConfig
from core.visualization.draw import class_color, load_font
from core.visualization.matches import _draw_boxes, _explain, _label_colors, _list_lines, draw_matches
from core.visualization.recording import LabelMatches

NAMES = ["cat", "dog", "[red]x[/red]\x1b[31m\n"]
TWICE = LabelAugmentationConfig(repeat_time=2)


def two_labels() -> LabelMatches:
    """Two labels, each with a query of its own and one of a copy, on an image of 400 x 400."""
    return LabelMatches(
        boxes_cxcywh_norm=torch.tensor([[0.25, 0.25, 0.3, 0.3], [0.7, 0.7, 0.3, 0.3]]),
        labels=torch.tensor([1, 0]),
        query_index=torch.tensor([3, 17, 90, 204]),
        label_index=torch.tensor([1, 0, 1, 0]),
        copy_index=torch.tensor([1, 0, 0, 1]),
        query_boxes_cxcywh_norm=torch.tensor(
            [[0.75, 0.7, 0.3, 0.3], [0.3, 0.25, 0.3, 0.3], [0.7, 0.75, 0.3, 0.3], [0.25, 0.3, 0.3, 0.3]]
        ),
    )


def many_labels(num_labels: int, num_matches: int, seed: int = 0) -> LabelMatches:
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int) -> torch.Tensor:
        return torch.rand(count, 4, generator=generator) * 1.4 - 0.2  # some outside

    return LabelMatches(
        boxes(num_labels),
        torch.arange(num_labels) % 3,
        torch.arange(num_matches),
        torch.arange(num_matches) % max(1, num_labels),
        torch.arange(num_matches) // max(1, num_labels),
        boxes(num_matches),
    )


def test_the_list_says_which_queries_learn_from_which_label() -> None:
    lines = _list_lines(two_labels(), NAMES)
    found = [(line.number, line.name, line.queries) for line in lines]
    assert found == [("1", "dog", "17, 204*"), ("2", "cat", "90, 3*")]
    lines = _list_lines(many_labels(1, 17), NAMES)
    assert [line.number for line in lines] == ["1", "", ""]
    assert lines[0].queries.startswith("0, 1*, 2*")
    assert lines[2].queries == "16*"
    assert [line.queries for line in _list_lines(many_labels(3, 2), NAMES)] == ["0", "1", "none"]
    assert "\n" not in _list_lines(many_labels(3, 2), NAMES)[2].name


def test_the_heading_says_what_was_repeated() -> None:
    heading, key = _explain(two_labels(), TWICE, 300)
    assert "2 labels, 4 of 300 queries; each label 2 times" in heading
    assert "star" in key
    heading, key = _explain(many_labels(1, 1), LabelAugmentationConfig(), 100)
    assert "1 label, 1 of 100 queries; each label once" in heading
    assert "star" not in key
    assert "25% of the queries" in _explain(two_labels(), LabelAugmentationConfig(repeat_ratio=0.25), 300)[0]


def test_queries_have_their_labels_colour_and_those_of_copies_a_dashed_line() -> None:
    grey = Image.new("RGB", (400, 400), (128, 128, 128))
    drawn = np.asarray(_draw_boxes(grey, two_labels(), load_font(12))).astype(int)

    def share(label: int, box_xyxy: tuple[float, ...]) -> float:
        """Return how much of the lower edge of a box is drawn in the label's colour."""
        left, _, right, bottom = (round(400 * edge) for edge in box_xyxy)
        return float((drawn[bottom - 1, left:right] == np.array(class_color(label))).all(-1).mean())

    assert share(0, (0.15, 0.1, 0.45, 0.4)) > 0.8  # query 17
    assert share(1, (0.55, 0.6, 0.85, 0.9)) > 0.8  # query 90
    assert 0.3 < share(0, (0.1, 0.15, 0.4, 0.45)) < 0.75  # query 204
    assert 0.3 < share(1, (0.6, 0.55, 0.9, 0.85)) < 0.75  # query 3
    inside = drawn[70:140, 70:85]
    assert (np.abs(inside - 128).sum(-1) > 10).all()  # tinted


@pytest.mark.parametrize(
    ("size", "matches"),
    [
        ((640, 480), many_labels(0, 0)),
        ((300, 200), many_labels(90, 90)),
        ((1000, 9), many_labels(20, 40)),
        ((9, 1000), many_labels(20, 40)),
        ((1, 1), many_labels(3, 9)),
    ],
)
def test_many_labels_and_odd_images_are_drawn(size: tuple[int, int], matches: LabelMatches) -> None:
    drawn = draw_matches(Image.new("RGB", size), matches, NAMES, TWICE, 300)
    assert drawn.width > size[0]
    assert drawn.height > size[1]


def test_labels_have_colours_of_their_own() -> None:
    for num_labels in (1, 10, 11, 12, 20, 37, 63):
        colors = _label_colors(num_labels)
        assert len(set(colors)) == len(colors) == num_labels
    for a, b in itertools.combinations(_label_colors(20), 2):
        assert sum(abs(x - y) for x, y in zip(a, b, strict=True)) > 40

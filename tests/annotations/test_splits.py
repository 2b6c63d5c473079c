from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.annotations.records import AnnotationSet, Category, ImageRecord
from core.annotations.splits import split_annotations, split_names
from core.errors import DataError, UsageError


@given(
    names=st.lists(st.text(max_size=4), min_size=2, max_size=60, unique=True),
    rate=st.floats(0.001, 0.999),
    seed=st.integers(0, 5),
    order=st.randoms(),
)
def test_parts_are_whole_and_independent_of_order(
    names: list[str], rate: float, seed: int, order: random.Random
) -> None:
    train, val = split_names(names, rate, seed)
    assert sorted(train + val) == sorted(names)
    assert train
    assert val
    assert abs(len(val) - rate * len(names)) <= 1
    order.shuffle(names)
    assert split_names(names, rate, seed) == (train, val)


def test_seeds_differ_and_stay_what_they_are() -> None:
    names = [f"n{index:02d}" for index in range(20)]
    parts = {seed: split_names(names, 0.2, seed)[1] for seed in range(4)}
    assert len({tuple(part) for part in parts.values()}) == 4
    assert parts[0] == ["n10", "n14", "n16", "n18"]


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_f76_rate_out_of_range(rate: float) -> None:
    with pytest.raises(UsageError, match="--val"):
        split_names(["a", "b"], rate, 0)


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match="fewer than two"):
        split_names(["a"], 0.5, 0)


def test_f27_repeated_pictures_stay_together() -> None:
    images = tuple(ImageRecord(index, f"{index}.png", 4, 4) for index in range(10))
    whole = AnnotationSet(images, (), (Category(1, "cat"),))
    same_as = {f"{index + 5}.png": f"{index}.png" for index in range(5)}
    for seed in range(5):
        train, val = split_annotations(whole, 0.4, seed, same_as)
        assert (len(train.images), len(val.images)) == (6, 4)
        kept = {image.id for image in val.images}
        assert all((index in kept) == (index + 5 in kept) for index in range(5))

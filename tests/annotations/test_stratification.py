from __future__ import annotations

import hashlib
import json
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.annotations.stratification import Unit, allot, count_labels, shots_order, stratified_part

NUM_CLASSES = 4
CONTENTS = st.lists(
    st.dictionaries(st.integers(0, NUM_CLASSES - 1), st.integers(1, 9), max_size=3), min_size=1, max_size=40
).map(lambda found: [counts or {NUM_CLASSES: 1} for counts in found])


def many(num_images: int, num_classes: int = 6, seed: int = 1) -> list[dict[int, int]]:
    """Images as they are found: classes of falling frequency, some images without objects, some crowded."""
    draw = random.Random(seed)
    frequencies = [1 / (label + 1) ** 1.5 for label in range(num_classes)]
    counts = []
    for _ in range(num_images):
        labels = draw.choices(range(num_classes), frequencies, k=draw.choice([0, 1, 2, 5, 12]))
        counts.append({label: labels.count(label) for label in sorted(set(labels))} or {num_classes: 1})
    return counts


def totals(counts: list[dict[int, int]], rows: list[int]) -> dict[int, int]:
    labels = {label for found in counts for label in found}
    return {label: sum(counts[row].get(label, 0) for row in rows) for label in labels}


def test_boxes_are_counted_by_image_and_class() -> None:
    box = (1.0, 1.0, 2.0, 2.0)
    found = AnnotationSet(
        tuple(ImageRecord(ident, f"{ident}.png", 9, 9) for ident in (5, 3, 9)),
        tuple(
            Annotation(ident, image, category, box, 4.0, is_crowd)
            for ident, (image, category, is_crowd) in enumerate(
                [(9, 70, False), (5, 70, False), (5, 2, False), (5, 70, False), (3, 2, True)]
            )
        ),
        (Category(70, "dog"), Category(2, "cat"), Category(4, "emu")),
    )
    assert count_labels(found) == ([{0: 1, 2: 2}, {3: 1}, {2: 1}], 3)
    assert count_labels(AnnotationSet(found.images, (), ())) == ([{0: 1}] * 3, 0)


@given(CONTENTS, st.data())
def test_parts_have_their_size_and_none_is_empty(counts: list[dict[int, int]], data: st.DataObject) -> None:
    num_parts = data.draw(st.integers(1, len(counts)))
    cuts = sorted(
        data.draw(
            st.lists(st.integers(1, len(counts) - 1), min_size=num_parts - 1, max_size=num_parts - 1, unique=True)
        )
        if len(counts) > 1
        else []
    )
    quotas = [end - start for start, end in zip([0, *cuts], [*cuts, len(counts)], strict=True)]
    parts = allot([Unit(1, found) for found in counts], quotas, data.draw(st.integers(0, 9)))
    assert [parts.count(part) for part in range(num_parts)] == quotas


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=3, max_size=20), st.integers(0, 9))
def test_units_of_any_size_leave_no_part_empty(found: list[tuple[int, int]], seed: int) -> None:
    units = [Unit(size, {label: size}) for size, label in found]
    num_images = sum(unit.size for unit in units)
    parts = allot(units, [num_images - 2, 1, 1], seed)
    assert {0, 1, 2} <= set(parts)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("quotas", [[240, 60], [210, 60, 30], [60] * 5])
def test_every_part_gets_its_share_of_every_class(quotas: list[int], seed: int) -> None:
    counts = many(300)
    parts = allot([Unit(1, found) for found in counts], quotas, seed)
    whole = totals(counts, list(range(300)))
    assert min(whole.values()) > 30
    for part, quota in enumerate(quotas):
        found = totals(counts, [row for row in range(300) if parts[row] == part])
        for label, total in whole.items():
            assert found[label] == pytest.approx(total * quota / 300, abs=max(4, 0.1 * total * quota / 300))


def test_a_rare_class_is_shared_as_rounding_would() -> None:
    for num_images, in_val in ((1, 0), (2, 0), (3, 1), (5, 1), (8, 2), (10, 2)):
        counts = [{0: 1} if row < num_images else {1: 1} for row in range(50)]
        parts = allot([Unit(1, found) for found in counts], [40, 10], 0)
        assert sum(parts[:num_images]) == in_val


@given(CONTENTS, st.integers(0, 3), st.data())
def test_stratified_parts_are_nested_and_hold_every_class(
    counts: list[dict[int, int]], seed: int, data: st.DataObject
) -> None:
    sizes = sorted(data.draw(st.lists(st.integers(1, len(counts)), min_size=2, max_size=4)))
    parts = [set(stratified_part(counts, NUM_CLASSES, seed, size)) for size in sizes]
    assert [len(part) for part in parts] == sizes
    assert all(small <= large for small, large in pairwise(parts))
    there = {label for found in counts for label in found} - {NUM_CLASSES}
    for part in parts:
        if len(part) >= len(there):
            assert there <= {label for row in part for label in counts[row]}


def test_one_image_with_every_class_comes_first() -> None:
    counts = [{0: 1}, {1: 1}, {2: 1}, {0: 1, 1: 1, 2: 1}, {3: 1}] * 3
    for seed in range(4):
        assert {label for row in stratified_part(counts, 4, seed, 2) for label in counts[row]} == {0, 1, 2, 3}


@pytest.mark.parametrize("size", [30, 60, 100, 150])
def test_stratified_parts_have_the_shares_of_the_whole(size: int) -> None:
    counts = many(300)
    whole, found = totals(counts, list(range(300))), totals(counts, stratified_part(counts, 6, 0, size))
    for label, total in whole.items():
        assert found[label] == pytest.approx(total * size / 300, abs=max(3, 0.2 * total * size / 300))


@given(CONTENTS, st.integers(0, 3), st.integers(1, 12))
def test_shots_are_nested_and_enough(counts: list[dict[int, int]], seed: int, shots: int) -> None:
    small, large = (shots_order(counts, NUM_CLASSES, seed, number) for number in (shots, shots + 1))
    assert large[: len(small)] == small
    assert len(set(large)) == len(large)
    whole, found = totals(counts, list(range(len(counts)))), totals(counts, small)
    for label in range(NUM_CLASSES):
        assert found.get(label, 0) >= min(shots, whole.get(label, 0))
    assert all(label != NUM_CLASSES for row in small for label in counts[row])


def test_shots_bring_few_boxes_too_many() -> None:
    counts = many(300)
    found = totals(counts, shots_order(counts, 6, 0, 10))
    assert all(10 <= found[label] <= 14 for label in range(2, 6))
    assert sum(found.values()) < 130


def test_no_number_of_shots_takes_for_ever() -> None:
    assert len(shots_order(many(40), 6, 0, 10**18)) == sum(6 not in found for found in many(40))


def test_results_stay_what_they_are_on_every_machine() -> None:
    counts = many(200)
    results = [
        allot([Unit(1, found) for found in counts], [140, 40, 20], 3),
        allot([Unit(1 + row % 3, found) for row, found in enumerate(counts[:90])], [90, 60, 30], 0),
        stratified_part(counts, 6, 0, 77),
        shots_order(counts, 6, 5, 7),
    ]
    digests = [hashlib.sha256(json.dumps(result).encode()).hexdigest()[:16] for result in results]
    assert digests == GOLDEN


GOLDEN = ["c354afcd09a5e89d", "332f8a0deccc019b", "32774049c05d2d33", "fce8a60dc47d3b9d"]

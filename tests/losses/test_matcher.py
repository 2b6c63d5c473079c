"""The matcher against brute force."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.schema import LabelAugmentationConfig, LossConfig
from core.errors import DivergedError
from core.label_augmentation import augment_batch
from core.losses.matcher import Matcher
from core.models.specs import DecoderFamily
from core.structures import ModelOutput
from tests.losses.samples import random_output, random_targets

FAMILIES = tuple(DecoderFamily)
LOSS = LossConfig(class_cost=1.5, l1_cost=4.0, giou_cost=3.0)


def pair_cost(
    logits: list[float], box: list[float], label: int, target_box: list[float], family: DecoderFamily
) -> float:
    """The cost of one pair, written out."""
    if family is DecoderFamily.DETR:
        total = sum(math.exp(logit) for logit in logits)
        class_cost = -math.exp(logits[label]) / total
    else:
        p = 1 / (1 + math.exp(-logits[label]))
        class_cost = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    l1 = sum(abs(a - b) for a, b in zip(box, target_box, strict=True))
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (box, target_box)
    )
    inner = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inner
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    giou = inner / union - (hull - union) / hull
    return 1.5 * class_cost + 4.0 * l1 - 3.0 * giou


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_are_those_written_out(family):
    output, targets = random_output(family, 2, 3, 4, seed=1), random_targets([3, 0, 2], seed=2)
    costs = Matcher(LOSS, family, two_stage=False).costs(output, targets)
    assert costs.shape == (2, 3, 4, 3)
    assert costs.dtype == torch.float32
    for layer in range(2):
        for image, target in enumerate(targets):
            for query in range(4):
                for index in range(len(target)):
                    expected = pair_cost(
                        output.logits[layer, image, query].tolist(),
                        output.boxes_cxcywh_norm[layer, image, query].tolist(),
                        int(target.labels[index]),
                        target.boxes_cxcywh_norm[index].tolist(),
                        family,
                    )
                    assert costs[layer, image, query, index].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def least_cost(cost: torch.Tensor) -> float:
    """The least cost of any assignment of rows to columns, by trying all."""
    if cost.shape[0] < cost.shape[1]:
        cost = cost.T
    num_rows, num_columns = cost.shape
    return min(
        sum(cost[row, column].item() for column, row in enumerate(rows))
        for rows in permutations(range(num_rows), num_columns)
    )


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    num_queries=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_assignment_is_the_best_of_all(family, counts, num_queries, seed):
    output, targets = random_output(family, 2, len(counts), num_queries, seed), random_targets(counts, seed)
    matcher = Matcher(LOSS, family, two_stage=False)
    matches, costs = matcher(output, targets), matcher.costs(output, targets)
    for layer in range(2):
        for image, num_targets in enumerate(counts):
            query, index = matches.of(layer, image)
            assert len(query) == min(num_targets, num_queries)
            assert query.unique().numel() == index.unique().numel() == len(query)
            assert torch.equal(query, query.sort().values)
            ours = costs[layer, image, query, index].sum().item()
            assert ours == pytest.approx(least_cost(costs[layer, image, :, :num_targets]), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    num_queries=st.integers(1, 9),
    ratio=st.booleans(),
    seed=st.integers(0, 999),
)
def test_originals_are_matched_before_their_copies(family, counts, num_queries, ratio, seed):
    policy = LabelAugmentationConfig(repeat_ratio=0.8) if ratio else LabelAugmentationConfig(repeat_time=2)
    output = random_output(family, 2, len(counts), num_queries, seed)
    targets = random_targets(counts, seed)
    augmented = augment_batch(targets, policy, num_queries, torch.Generator().manual_seed(seed))
    matches = Matcher(LOSS, family, two_stage=True)(output, augmented)
    alone = Matcher(LOSS, family, two_stage=False)(output, targets)
    for layer in range(2):
        for image, target in enumerate(augmented):
            query, index = matches.of(layer, image)
            assert query.unique().numel() == index.unique().numel() == len(query) == min(len(target), num_queries)
            num_originals = min(counts[image], num_queries)
            assert (target.copy_index[index[:num_originals]] == 0).all()
            assert (target.copy_index[index[num_originals:]] > 0).all()
            # Copies do not change what the originals get.
            query_alone, index_alone = alone.of(layer, image)
            assert torch.equal(query[:num_originals], query_alone)
            assert torch.equal(index[:num_originals], index_alone)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("two_stage", [False, True])
def test_no_targets_at_all(family, two_stage):
    output = random_output(family, 2, 3, 4, seed=0)
    matches = Matcher(LOSS, family, two_stage)(output, random_targets([0, 0, 0], seed=0))
    assert matches.image_index.shape == (0,)
    assert matches.query_index.shape == matches.target_index.shape == (2, 0)
    assert matches.query_index.dtype == matches.target_index.dtype == matches.image_index.dtype == torch.int64


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("field", "value"),
    [("logits", float("nan")), ("boxes_cxcywh_norm", float("nan")), ("boxes_cxcywh_norm", float("inf"))],
)
def test_numbers_that_are_not_finite_are_named(family, field, value):
    output = random_output(family, 3, 2, 4, seed=0)
    broken = getattr(output, field).clone()
    broken[2, 1] = value
    output = output._replace(**{field: broken})
    with pytest.raises(DivergedError, match=r"decoder layer 2, image 1 of the batch.*not a finite number") as caught:
        Matcher(LOSS, family, two_stage=False)(output, random_targets([2, 2], seed=0))
    assert caught.value.exit_code == 6
    assert caught.value.hint


def test_half_precision_is_matched_in_float32():
    output = random_output(DecoderFamily.DETR, 2, 2, 5, seed=0)
    halves = ModelOutput(output.logits.bfloat16(), output.boxes_cxcywh_norm.bfloat16())
    targets = random_targets([3, 2], seed=0)
    matcher = Matcher(LOSS, DecoderFamily.DETR, two_stage=False)
    with torch.autocast("cpu", torch.bfloat16):
        costs = matcher.costs(halves, targets)
    upcast = ModelOutput(halves.logits.float(), halves.boxes_cxcywh_norm.float())
    assert costs.dtype == torch.float32
    assert torch.equal(costs, matcher.costs(upcast, targets))


def test_matching_needs_no_gradient():
    output = random_output(DecoderFamily.DETR, 1, 1, 3, seed=0)
    output = output._replace(logits=output.logits.requires_grad_())
    assert not Matcher(LOSS, DecoderFamily.DETR, two_stage=False).costs(output, random_targets([1], 0)).requires_grad

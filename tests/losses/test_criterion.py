"""What holds of the losses whatever the numbers."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.schema import LabelAugmentationConfig, LossConfig
from core.errors import DivergedError
from core.losses.criterion import Criterion, Normalisers
from core.models.specs import DecoderFamily
from core.structures import ModelOutput
from tests.losses.samples import NUM_CLASSES, random_output, random_targets

FAMILIES = tuple(DecoderFamily)
POLICIES = {
    "once": LabelAugmentationConfig(),
    "time": LabelAugmentationConfig(repeat_time=2),
    "ratio": LabelAugmentationConfig(repeat_ratio=0.5),
    "time, two stages": LabelAugmentationConfig(repeat_time=3, two_stage_match=True),
    "ratio, two stages": LabelAugmentationConfig(repeat_ratio=0.7, two_stage_match=True),
}
batches = st.lists(st.integers(0, 6), min_size=1, max_size=4)


def make(family: DecoderFamily, policy: str = "once", **loss: float | bool) -> Criterion:
    return Criterion(LossConfig(**loss), POLICIES[policy], family, NUM_CLASSES)


def double(output: ModelOutput) -> ModelOutput:
    return ModelOutput(output.logits.double().requires_grad_(), output.boxes_cxcywh_norm.double().requires_grad_())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    policy=st.sampled_from(sorted(POLICIES)),
    counts=batches,
    num_queries=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_normalisers_from_counts_are_those_of_the_matches(family, policy, counts, num_queries, seed):
    criterion = make(family, policy).train()
    output = random_output(family, 2, len(counts), num_queries, seed)
    targets = criterion.augment(random_targets(counts, seed), num_queries, seeded(seed))
    normalisers = Normalisers.of(targets, num_queries)
    matches = criterion.matcher(output, targets)
    assert normalisers.num_boxes == sum(len(target) for target in targets)
    assert normalisers.num_matched == matches.query_index.shape[1]
    assert normalisers.num_matched + normalisers.num_unmatched == len(counts) * num_queries


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    policy=st.sampled_from(sorted(POLICIES)),
    counts=batches,
    num_queries=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_parts_sum_to_the_whole(family, policy, counts, num_queries, seed):
    """Losses and gradients of micro-batches (or processes) with shared normalisers are those of one batch."""
    criterion = make(family, policy).train()
    whole, parts = (double(random_output(family, 2, len(counts), num_queries, seed)) for _ in range(2))
    targets = criterion.augment(random_targets(counts, seed), num_queries, seeded(seed))
    expected = criterion(whole, targets)
    expected.total.backward()

    shared = reduce(add, [Normalisers.of([target], num_queries) for target in targets])
    totals, terms = [], []
    for image, target in enumerate(targets):
        output = ModelOutput(*(values[:, image : image + 1] for values in parts))
        losses = criterion(output, [target], normalisers=shared)
        losses.total.backward()
        totals.append(losses.total.item())
        terms.append(losses.terms)
    assert sum(totals) == pytest.approx(expected.total.item(), rel=1e-9, abs=1e-12)
    for name in ("loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "loss_bbox_0", "loss_giou_0"):
        assert sum(term[name].item() for term in terms) == pytest.approx(expected.terms[name].item(), abs=1e-9)
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("family", FAMILIES)
def test_no_targets_give_finite_losses_and_gradients(family, policy):
    criterion = make(family, policy).train()
    output = double(random_output(family, 2, 2, 5, seed=0))
    losses = criterion(output, random_targets([0, 0], seed=0), seeded(0))
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(value.isfinite() for value in losses.terms.values())
    assert output.logits.grad.isfinite().all()
    assert output.logits.grad.abs().sum() > 0
    assert output.boxes_cxcywh_norm.grad is not None
    assert not output.boxes_cxcywh_norm.grad.any()
    assert losses.terms["class_error"] == 100
    assert losses.terms["loss_bbox"] == losses.terms["loss_giou"] == 0


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_never_changed(family, policy):
    targets, untouched = random_targets([3, 0, 2], seed=3), random_targets([3, 0, 2], seed=3)
    make(family, policy).train()(random_output(family, 2, 3, 8, seed=3), targets, seeded(0))
    for target, before in zip(targets, untouched, strict=True):
        assert torch.equal(target.boxes_cxcywh_norm, before.boxes_cxcywh_norm)
        assert torch.equal(target.labels, before.labels)
        assert target.copy_index is None


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_repeated_in_training_only(family):
    criterion, output, targets = make(family, "time"), random_output(family, 2, 2, 9, 1), random_targets([2, 3], 1)
    once = make(family)
    assert criterion.eval()(output, targets).terms == once(output, targets).terms
    assert criterion.train()(output, targets, seeded(0)).terms != once(output, targets).terms


@pytest.mark.parametrize("family", FAMILIES)
def test_augmented_targets_are_not_augmented_again(family):
    criterion = make(family, "ratio").train()
    output, targets = random_output(family, 2, 2, 9, 1), random_targets([2, 3], 1)
    augmented = criterion.augment(targets, 9, seeded(5))
    assert criterion.augment(augmented, 9) is augmented
    assert criterion(output, augmented).terms == criterion(output, targets, seeded(5)).terms


def test_augmentation_without_a_generator_is_refused():
    criterion = make(DecoderFamily.DETR, "time").train()
    with pytest.raises(ValueError, match="generator"):
        criterion(random_output(DecoderFamily.DETR, 1, 1, 3, 0), random_targets([1], 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_total_is_the_weighted_sum_of_the_terms(family):
    weights = {"class_weight": 1.5, "l1_weight": 4.0, "giou_weight": 3.0}
    losses = make(family, **weights)(random_output(family, 3, 2, 6, 0), random_targets([2, 4], 0))
    names = {"loss_ce": 1.5, "loss_bbox": 4.0, "loss_giou": 3.0}
    expected = sum(
        weight * losses.terms[name + suffix] for name, weight in names.items() for suffix in ("", "_0", "_1")
    )
    torch.testing.assert_close(losses.total, expected)
    assert not any(value.requires_grad for value in losses.terms.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_without_auxiliary_losses_only_the_last_layer_learns(family):
    output = double(random_output(family, 3, 2, 6, 0))
    targets = random_targets([2, 4], 0)
    losses = make(family, auxiliary=False)(output, targets)
    losses.total.backward()
    assert set(losses.terms) == {"loss_ce", "loss_bbox", "loss_giou", "cardinality_error", "class_error"}
    assert not output.logits.grad[:-1].any()
    assert output.logits.grad[-1].any()
    assert losses.terms["loss_ce"] == make(family)(output, targets).terms["loss_ce"]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_float32_under_autocast(family):
    output, targets = random_output(family, 2, 2, 6, 0), random_targets([2, 4], 0)
    halves = ModelOutput(output.logits.bfloat16(), output.boxes_cxcywh_norm.bfloat16())
    upcast = ModelOutput(halves.logits.float(), halves.boxes_cxcywh_norm.float())
    with torch.autocast("cpu", torch.bfloat16):
        losses = make(family)(halves, targets)
    assert losses.total.dtype == torch.float32
    assert losses.terms == make(family)(upcast, targets).terms


@pytest.mark.parametrize("family", FAMILIES)
def test_nan_ends_the_run_by_name(family):
    output = random_output(family, 2, 2, 6, 0)
    output.logits[0, 1, 3] = float("nan")
    with pytest.raises(DivergedError, match="decoder layer 0, image 1"):
        make(family)(output, random_targets([1, 1], 0))


def test_class_error_counts_matched_queries():
    output = random_output(DecoderFamily.DETR, 1, 1, 4, 0)
    targets = random_targets([4], 0)
    criterion = make(DecoderFamily.DETR)
    query, index = criterion.matcher(output, targets).of(0, 0)
    wrong = sum(int(output.logits[0, 0, q].argmax() != targets[0].labels[t]) for q, t in zip(query, index, strict=True))
    assert criterion(output, targets).terms["class_error"] == pytest.approx(100 * wrong / 4)


def test_buffers_are_not_saved():
    assert not make(DecoderFamily.DETR).state_dict()

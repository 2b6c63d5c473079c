"""Label augmentation against counting by hand; parity with the reference is in tests/losses/test_parity.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.schema import LabelAugmentationConfig
from core.label_augmentation import augment_batch, augment_labels, augmented_count, has_policy
from core.structures import Target

policies = st.one_of(
    st.builds(LabelAugmentationConfig, repeat_time=st.integers(1, 4), two_stage_match=st.booleans()),
    st.builds(LabelAugmentationConfig, repeat_ratio=st.floats(0.01, 1.0), two_stage_match=st.booleans()),
)


def numbered(num_labels: int) -> Target:
    """A target whose labels tell where each came from."""
    labels = torch.arange(num_labels)
    return Target(labels[:, None] * 0.01 + torch.tensor([0.1, 0.2, 0.3, 0.4]), labels)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(num_labels=st.integers(0, 12), config=policies, num_queries=st.integers(1, 40), seed=st.integers(0, 99))
def test_whatever_the_policy(num_labels, config, num_queries, seed):
    target, untouched = numbered(num_labels), numbered(num_labels)
    result = augment_labels(target, config, num_queries, seeded(seed))

    assert torch.equal(target.boxes_cxcywh_norm, untouched.boxes_cxcywh_norm)
    assert torch.equal(target.labels, untouched.labels)
    assert target.copy_index is None

    assert len(result) == augmented_count(num_labels, config, num_queries)
    assert torch.equal(result.labels[:num_labels], target.labels)
    assert torch.equal(result.boxes_cxcywh_norm, target.boxes_cxcywh_norm[result.labels])
    # Oracle: the k-th time a label is seen, it is its k-th copy.
    seen: dict[int, int] = {}
    for label, copy in zip(result.labels.tolist(), result.copy_index.tolist(), strict=True):
        assert copy == seen.get(label, 0)
        seen[label] = copy + 1
    assert result.copy_index.dtype == torch.int64


@settings(max_examples=40, deadline=None)
@given(num_labels=st.integers(0, 12), ratio=st.floats(0.01, 1.0), num_queries=st.integers(1, 40))
def test_repeat_ratio_fills_its_share(num_labels, ratio, num_queries):
    result = augment_labels(numbered(num_labels), LabelAugmentationConfig(repeat_ratio=ratio), num_queries, seeded())
    wanted = int(ratio * num_queries)
    if 0 < num_labels < wanted:
        assert len(result) == wanted
        times = result.labels.bincount(minlength=num_labels)
        assert times.max() - times.min() <= 1
    else:
        assert len(result) == num_labels


@pytest.mark.parametrize("times", [1, 2, 5])
def test_repeat_time_repeats_round_by_round(times):
    result = augment_labels(numbered(3), LabelAugmentationConfig(repeat_time=times), 4, seeded())
    assert result.labels.tolist() == [0, 1, 2] * times
    assert result.copy_index.tolist() == [k for k in range(times) for _ in range(3)]


def test_the_remainder_is_drawn_at_random_without_repeats():
    config = LabelAugmentationConfig(repeat_ratio=1.0)
    drawn = set()
    for seed in range(40):
        result = augment_labels(numbered(4), config, 10, seeded(seed))
        extra = result.labels[8:].tolist()
        assert len(set(extra)) == 2
        drawn |= set(extra)
    assert drawn == {0, 1, 2, 3}


def test_one_permutation_for_each_image_that_is_augmented():
    """The draws of a batch are part of what is promised: an image left alone takes none."""
    config = LabelAugmentationConfig(repeat_ratio=1.0)
    counts = [3, 0, 12, 5, 4, 10]
    results = augment_batch([numbered(count) for count in counts], config, 10, seeded(7))
    draws = seeded(7)
    for count, result in zip(counts, results, strict=True):
        if 0 < count < 10:
            order = torch.randperm(count, generator=draws)
            assert torch.equal(result.labels[count * (10 // count) :], order[: 10 % count])
        else:
            assert torch.equal(result.labels, torch.arange(count))


def test_without_a_policy_nothing_happens():
    target = numbered(2)
    assert not has_policy(LabelAugmentationConfig(two_stage_match=True))
    assert augment_labels(target, LabelAugmentationConfig(), 4, seeded()) is target
    assert augmented_count(2, LabelAugmentationConfig(), 4) == 2


def test_empty_boxes_stay_boxes():
    for config in (LabelAugmentationConfig(repeat_time=3), LabelAugmentationConfig(repeat_ratio=0.5)):
        result = augment_labels(numbered(0), config, 8, seeded())
        assert result.boxes_cxcywh_norm.shape == (0, 4)
        assert result.copy_index.shape == (0,)


def test_repeating_twice_is_a_mistake():
    config = LabelAugmentationConfig(repeat_time=2)
    once = augment_labels(numbered(2), config, 8, seeded())
    with pytest.raises(ValueError, match="already"):
        augment_labels(once, config, 8, seeded())

"""NMS against the greedy algorithm written out."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from core.errors import MachineError
from core.ops.nms import nms_per_class


def greedy(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, threshold: float) -> list[int]:
    overlaps = box_iou(boxes, boxes)
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if all(labels[other] != labels[index] or overlaps[other, index] <= threshold for other in kept):
            kept.append(index)
    return kept


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 30), threshold=st.sampled_from([0.11, 0.3, 0.52, 0.7]), seed=st.integers(0, 999))
def test_is_greedy_within_each_class(count, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) - 0.2
    boxes = torch.cat([low, low + torch.rand(count, 2, generator=generator) * 0.5 + 0.2], -1)
    scores = torch.randperm(count, generator=generator) / 100
    labels = torch.randint(3, (count,), generator=generator)
    kept = nms_per_class(boxes, scores, labels, threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == greedy(boxes, scores, labels, threshold)


def test_missing_operators_are_named(monkeypatch):
    monkeypatch.setattr(torchvision.extension, "_has_ops", lambda: False)
    with pytest.raises(MachineError, match="no compiled operators") as caught:
        nms_per_class(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), torch.zeros(1, dtype=torch.int64), 0.5)
    assert caught.value.exit_code == 5


def test_other_errors_are_not_hidden():
    with pytest.raises((RuntimeError, IndexError)):
        nms_per_class(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, dtype=torch.int64), 0.5)

"""Faults that are put in on purpose turn the parity checks red: the recorded runs notice each of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

import core.label_augmentation as label_augmentation
import core.losses.classification as classification
import core.losses.criterion as criterion
import core.losses.matcher as matcher
from core.losses.criterion import Criterion, Normalisers
from core.losses.matcher import Matcher
from core.ops.boxes import giou_aligned, xyxy_to_cxcywh
from tests.golden_files import Golden
from tests.losses import parity
from tests.losses.parity import check_all, recorded

SOFTMAX, SIGMOID = ("detr", "dela-detr"), ("conddetr", "dela-conddetr")


def is_red(*names: str) -> bool:
    """Return whether the checks of every one of these recordings fail."""
    for name in names:
        try:
            check_all(recorded(name))
        except AssertionError:
            continue
        return False
    return True


def with_loss(monkeypatch: pytest.MonkeyPatch, **changes: float | bool) -> None:
    original = Golden.loss_config
    changed = property(lambda golden: original.fget(golden).model_copy(update=changes))
    monkeypatch.setattr(Golden, "loss_config", changed)


def test_nothing_is_red_without_a_mutation():
    for name in (*SOFTMAX, *SIGMOID, "dela-detr-ratio"):
        check_all(recorded(name))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"no_object_weight": 0.11}, SOFTMAX),
        ({"focal_alpha": 0.26}, SIGMOID),
        ({"class_weight": 1.5}, SOFTMAX + SIGMOID),
        ({"l1_weight": 5.01}, SOFTMAX + SIGMOID),
        ({"giou_weight": 2.01}, SOFTMAX + SIGMOID),
        ({"class_cost": 0.0}, SOFTMAX + SIGMOID),
        ({"l1_cost": 0.0}, SOFTMAX + SIGMOID),
        ({"giou_cost": 0.0}, SOFTMAX + SIGMOID),
        ({"auxiliary": False}, SOFTMAX + SIGMOID),
    ],
)
def test_wrong_configuration(monkeypatch, changes, names):
    with_loss(monkeypatch, **changes)
    assert is_red(*names)


def test_copies_are_not_counted(monkeypatch):
    count = Normalisers.of

    def without_copies(targets, num_queries):
        originals = [len(t) if t.copy_index is None else int((t.copy_index == 0).sum()) for t in targets]
        return replace(count(targets, num_queries), num_boxes=sum(originals))

    monkeypatch.setattr(Normalisers, "of", without_copies)
    assert is_red("dela-detr", "dela-conddetr", "dela-detr-ratio")


def test_number_of_boxes_cut_at_the_queries(monkeypatch):
    count = Normalisers.of

    def cut(targets, num_queries):
        counts = count(targets, num_queries)
        return replace(counts, num_boxes=counts.num_matched)

    monkeypatch.setattr(Normalisers, "of", cut)
    assert is_red("dela-detr", "dela-conddetr")


def test_no_boxes_are_not_counted_as_one(monkeypatch):
    monkeypatch.setattr(criterion, "max", lambda count, _: count, raising=False)
    assert is_red(*SOFTMAX, *SIGMOID)


def test_mean_over_queries_not_over_weights(monkeypatch):
    count = Normalisers.of

    def all_matched(targets, num_queries):
        return replace(count(targets, num_queries), num_matched=len(targets) * num_queries, num_unmatched=0)

    monkeypatch.setattr(Normalisers, "of", all_matched)
    assert is_red(*SOFTMAX)


def test_iou_loss_for_giou(monkeypatch):
    def iou_aligned(a, b):
        return torch.stack([box_iou(x, y).diagonal() for x, y in zip(a, b, strict=True)])

    monkeypatch.setattr(criterion, "giou_aligned", iou_aligned)
    assert is_red(*SOFTMAX, *SIGMOID)


def test_iou_cost_for_giou(monkeypatch):
    def iou_pairwise(a, b):
        return torch.stack([torch.stack([box_iou(x, y) for x, y in zip(layer, b, strict=True)]) for layer in a])

    monkeypatch.setattr(matcher, "giou_pairwise", iou_pairwise)
    assert is_red(*SOFTMAX, *SIGMOID)


def test_boxes_are_compared_by_their_corners(monkeypatch):
    gather = criterion._Pairs.gather

    def as_corners(*args):
        pairs = gather(*args)
        to_xyxy = criterion.cxcywh_to_xyxy
        return replace(pairs, boxes=to_xyxy(pairs.boxes), target_boxes=to_xyxy(pairs.target_boxes))

    monkeypatch.setattr(criterion._Pairs, "gather", as_corners)
    # GIoU is taken of the same boxes: undo one of the two conversions, so that the L1 loss alone is wrong.
    monkeypatch.setattr(criterion, "giou_aligned", lambda a, b: giou_aligned(xyxy_to_cxcywh(a), xyxy_to_cxcywh(b)))
    assert is_red(*SOFTMAX, *SIGMOID)


def test_one_matching_for_all_layers(monkeypatch):
    match = Matcher.__call__

    def last_layer(self, output, targets):
        matches = match(self, output, targets)
        return replace(
            matches,
            query_index=matches.query_index[-1:].expand_as(matches.query_index),
            target_index=matches.target_index[-1:].expand_as(matches.target_index),
        )

    monkeypatch.setattr(Matcher, "__call__", last_layer)
    assert is_red(*SOFTMAX, *SIGMOID)


def test_targets_of_another_image(monkeypatch):
    match = Matcher.__call__

    def swapped(self, output, targets):
        matches = match(self, output, targets)
        return replace(matches, image_index=matches.image_index.flip(0))

    monkeypatch.setattr(Matcher, "__call__", swapped)
    assert is_red(*SOFTMAX, *SIGMOID)


def test_cost_without_the_negative_focal_term(monkeypatch):
    def positive_only(logits, labels, alpha):
        prob = classification._at_labels(logits.sigmoid(), labels)
        return alpha * (1 - prob) ** 2 * -(prob + 1e-8).log()

    monkeypatch.setattr(matcher, "focal_cost", positive_only)
    assert is_red(*SIGMOID)


def test_cross_entropy_for_the_focal_loss(monkeypatch):
    monkeypatch.setattr(classification, "FOCAL_GAMMA", 0.0)
    assert is_red(*SIGMOID)


def test_two_stages_are_ignored(monkeypatch):
    call = parity.check_matches
    monkeypatch.setattr(
        parity, "check_matches", lambda golden, case: None if not case.two_stage else call(golden, case)
    )
    monkeypatch.setattr(Matcher, "_stages", lambda self, target: [torch.arange(len(target)).numpy()])
    assert is_red("dela-detr", "dela-conddetr")


def test_copies_stand_beside_their_originals(monkeypatch):
    augment = label_augmentation.augment_labels

    def interleaved(target, *args):
        result = augment(target, *args)
        if not len(target):
            return result
        order = (result.boxes_cxcywh_norm[:, None] == target.boxes_cxcywh_norm[None]).all(-1).float().argmax(1)
        order = order.sort(stable=True).indices
        return replace(result, boxes_cxcywh_norm=result.boxes_cxcywh_norm[order], labels=result.labels[order])

    monkeypatch.setattr(label_augmentation, "augment_labels", interleaved)
    monkeypatch.setattr(parity, "check_matches", lambda golden, case: None)
    assert is_red("dela-detr", "dela-detr-ratio", "dela-conddetr")


def test_other_random_draws(monkeypatch):
    monkeypatch.setattr(parity, "RECORDED_SEED", parity.RECORDED_SEED + 1)
    assert is_red("dela-detr-ratio")


def test_augmentation_in_evaluation(monkeypatch):
    def always(self, targets, num_queries, generator=None):
        return label_augmentation.augment_batch(targets, self.augmentation, num_queries, generator)

    monkeypatch.setattr(Criterion, "augment", always)
    assert is_red("dela-detr", "dela-detr-ratio", "dela-conddetr")


def test_cardinality_counts_as_the_paper_would(monkeypatch):
    """The reference takes the last class of a sigmoid head for "no object"; kept, and noticed."""
    monkeypatch.setattr(
        criterion,
        "cardinality_error",
        lambda logits, num_targets: (((logits > 0).any(-1).sum(-1)) - num_targets).abs().float().mean(-1),
    )
    assert is_red(*SIGMOID)

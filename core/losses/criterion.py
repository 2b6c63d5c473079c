"""The training loss: labels augmented, matched layer by layer, compared by class, L1 and GIoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.config.schema import LabelAugmentationConfig, LossConfig
from core.label_augmentation import augment_batch, has_policy
from core.losses.classification import (
    cardinality_error,
    class_error,
    cross_entropy_sum,
    focal_sum,
    full_precision,
)
from core.losses.matcher import Matcher, Matches
from core.models.specs import DecoderFamily
from core.ops.boxes import cxcywh_to_xyxy, giou_aligned
from core.structures import ModelOutput, Target


@dataclass(frozen=True)
class Normalisers:
    """Counts that the losses are divided by; whole numbers, so that sums of them are exact in any order.

    They follow from the numbers of targets alone, before any matching. Added over micro-batches and
    processes and given to each one's `Criterion`, they make the losses of all parts sum to the loss of one
    batch: all-reduce `torch.tensor(dataclasses.astuple(normalisers))`.

    Attributes:
        num_boxes: targets, after label augmentation.
        num_matched: queries of one layer that get a target.
        num_unmatched: queries of one layer that get none.
    """

    num_boxes: int
    num_matched: int
    num_unmatched: int

    @classmethod
    def of(cls, targets: Sequence[Target], num_queries: int) -> Normalisers:
        """Count for a batch whose labels are augmented already."""
        num_matched = sum(min(len(target), num_queries) for target in targets)
        num_boxes = sum(len(target) for target in targets)
        return cls(num_boxes, num_matched, len(targets) * num_queries - num_matched)

    def __add__(self, other: Normalisers) -> Normalisers:
        return Normalisers(
            self.num_boxes + other.num_boxes,
            self.num_matched + other.num_matched,
            self.num_unmatched + other.num_unmatched,
        )


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    Attributes:
        total: scalar to differentiate, the weighted sum over all layers that are trained on.
        terms: scalars for the record, detached and not weighted: `loss_ce`, `loss_bbox`, `loss_giou`,
            `cardinality_error` and `class_error` of the last layer, and all but the last with the suffix
            `_0`, `_1`, ... for each layer before it. `loss_ce` is the focal loss with a sigmoid head.
    """

    total: Tensor
    terms: dict[str, Tensor]


class Criterion(nn.Module):
    """Compares what a detector says with what it should say (DETR, section 3.1; Conditional DETR).

    Args:
        loss: weights of losses and matching costs.
        augmentation: label policy and the way of matching.
        family: decides on the classification head.
        num_classes: C.
    """

    class_weights: Tensor

    def __init__(
        self, loss: LossConfig, augmentation: LabelAugmentationConfig, family: DecoderFamily, num_classes: int
    ) -> None:
        super().__init__()
        self.loss = loss
        self.augmentation = augmentation
        self.family = family
        self.num_classes = num_classes
        self.matcher = Matcher(loss, family, augmentation.two_stage_match)
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = loss.no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    def augment(
        self, targets: Sequence[Target], num_queries: int, generator: torch.Generator | None = None
    ) -> Sequence[Target]:
        """Return the targets that are trained on: augmented in training mode, if there is a policy.

        A batch whose targets carry a `copy_index` is taken as augmented already.
        """
        if not (self.training and has_policy(self.augmentation)):
            return targets
        if all(target.copy_index is not None for target in targets):
            return targets
        if generator is None:
            raise ValueError("label augmentation needs a generator")
        return augment_batch(targets, self.augmentation, num_queries, generator)

    def forward(
        self,
        output: ModelOutput,
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
        normalisers: Normalisers | None = None,
    ) -> Losses:
        """Return the losses of a batch.

        A trainer that spreads a batch over processes or micro-batches calls `augment`, sums `Normalisers.of`
        the results, and passes both on.

        Args:
            output: what the detector says; L layers, of which only the last counts without auxiliary losses.
            targets: B targets, as annotated or by `augment`; never changed. They are best left on the host: what the
                device needs of them goes there without a wait.
            generator: for label augmentation, needed in training mode when there is a policy.
            normalisers: sums over all parts of the batch; this part's own if None.

        Raises:
            DivergedError: a matching cost is not a finite number.
        """
        logits, boxes = full_precision(output.logits), full_precision(output.boxes_cxcywh_norm)
        if not self.loss.auxiliary:
            logits, boxes = logits[-1:], boxes[-1:]
        num_queries = logits.shape[2]
        targets = self.augment(targets, num_queries, generator)
        if normalisers is None:
            normalisers = Normalisers.of(targets, num_queries)
        matches = self.matcher(ModelOutput(logits, boxes), targets)
        pairs = _Pairs.gather(logits, boxes, targets, matches)

        loss_ce = self._classification(logits, pairs, normalisers)
        num_boxes = max(normalisers.num_boxes, 1)
        loss_bbox = (pairs.boxes - pairs.target_boxes).abs().sum((1, 2)) / num_boxes
        giou = giou_aligned(cxcywh_to_xyxy(pairs.boxes), cxcywh_to_xyxy(pairs.target_boxes))
        loss_giou = (1 - giou).sum(1) / num_boxes
        weights = self.loss
        total = (weights.class_weight * loss_ce + weights.l1_weight * loss_bbox + weights.giou_weight * loss_giou).sum()

        num_targets = torch.tensor([len(target) for target in targets]).to(logits.device, non_blocking=True)
        by_layer = {
            "loss_ce": loss_ce,
            "loss_bbox": loss_bbox,
            "loss_giou": loss_giou,
            "cardinality_error": cardinality_error(logits, num_targets),
        }
        terms = _name_by_layer(by_layer)
        terms["class_error"] = class_error(pairs.logits[-1], pairs.labels[-1]).detach()
        return Losses(total, terms)

    def _classification(self, logits: Tensor, pairs: _Pairs, normalisers: Normalisers) -> Tensor:
        """Return the classification loss of each layer, (L,)."""
        classes = torch.full(logits.shape[:3], self.num_classes, device=logits.device)
        classes[pairs.index] = pairs.labels
        if self.family is DecoderFamily.CONDITIONAL:
            return focal_sum(logits, classes, self.loss.focal_alpha) / max(normalisers.num_boxes, 1)
        weight_sum = normalisers.num_matched + self.loss.no_object_weight * normalisers.num_unmatched
        return cross_entropy_sum(logits, classes, self.class_weights) / weight_sum


@dataclass(frozen=True)
class _Pairs:
    """Matched queries and targets side by side.

    Attributes:
        index: (layer, image, query), each (L, M) or broadcasting to it.
        logits: (L, M, K).
        boxes: (L, M, 4) cxcywh_norm.
        labels: (L, M).
        target_boxes: (L, M, 4) cxcywh_norm.
    """

    index: tuple[Tensor, Tensor, Tensor]
    logits: Tensor
    boxes: Tensor
    labels: Tensor
    target_boxes: Tensor

    @classmethod
    def gather(cls, logits: Tensor, boxes: Tensor, targets: Sequence[Target], matches: Matches) -> _Pairs:
        # Targets are put in order where they are; what is on the host goes to the device without a wait.
        counts = torch.tensor([len(target) for target in targets])
        among_all = matches.target_index + (counts.cumsum(0) - counts)[matches.image_index]
        labels = torch.cat([target.labels for target in targets])
        target_boxes = torch.cat([target.boxes_cxcywh_norm for target in targets])
        among_all = among_all.to(labels.device, non_blocking=True)
        places = torch.stack([matches.image_index.expand_as(matches.query_index), matches.query_index])
        image, query = places.to(logits.device, non_blocking=True)
        layer = torch.arange(len(logits), device=logits.device)[:, None]
        index = (layer, image, query)
        return cls(
            index,
            logits[index],
            boxes[index],
            labels[among_all].to(logits.device, non_blocking=True),
            target_boxes[among_all].to(boxes, non_blocking=True),
        )


def _name_by_layer(by_layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the numbers of each layer: the last one's plainly, those before it with the layer's index."""
    terms: dict[str, Tensor] = {}
    for name, values in by_layer.items():
        *auxiliary, last = values.detach().unbind()
        terms[name] = last
        terms |= {f"{name}_{layer}": value for layer, value in enumerate(auxiliary)}
    return terms

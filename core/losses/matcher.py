"""Bipartite matching of queries and targets (DETR, section 3.1), for all decoder layers of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from core.config.schema import LossConfig
from core.errors import DivergedError
from core.losses.classification import focal_cost, full_precision, softmax_cost
from core.models.specs import DecoderFamily
from core.ops.boxes import cxcywh_to_xyxy, giou_pairwise
from core.structures import ModelOutput, Target

Assignment = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


@dataclass(frozen=True)
class Matches:
    """Which query answers for which target, in every decoder layer; on the host, where it is found out.

    An image with n targets has min(n, Q) matches in each layer, so that layers stack. Images follow each
    other; within one, query indices rise (twice over in two-stage matching: originals, then copies).

    Attributes:
        image_index: (M,) int64, the same for all layers.
        query_index: (L, M) int64.
        target_index: (L, M) int64, counted within the targets of the image.
    """

    image_index: Tensor
    query_index: Tensor
    target_index: Tensor

    def of(self, layer: int, image: int) -> tuple[Tensor, Tensor]:
        """Return query and target indices of one image in one layer."""
        chosen = self.image_index == image
        return self.query_index[layer, chosen], self.target_index[layer, chosen]


class Matcher:
    """Finds the assignment of least cost for each image and each decoder layer on its own.

    Cost of a pair = class + L1 of `cxcywh_norm` + negative GIoU, weighted by `loss`. The class cost is minus
    the softmax probability (DETR) or the focal cost (Conditional DETR). Of more targets than queries, those
    of least cost are matched.

    Args:
        loss: weights of the costs.
        family: decides on the class cost.
        two_stage: match labels as annotated first, their copies on the queries that remain.
    """

    def __init__(self, loss: LossConfig, family: DecoderFamily, two_stage: bool) -> None:
        self.loss = loss
        self.family = family
        self.two_stage = two_stage

    @torch.no_grad()
    def __call__(self, output: ModelOutput, targets: Sequence[Target]) -> Matches:
        """Match the queries of every layer with the targets, which are best left on the host.

        Raises:
            DivergedError: a cost is not a finite number.
        """
        # One transfer for all layers and images: each would wait for the device otherwise.
        costs = self.costs(output, targets).cpu().numpy()
        _check_finite(costs)
        stages = [self._stages(target) for target in targets]
        queries, matched = [], []
        for layer_costs in costs:
            pairs = [
                _assign(cost[:, : len(target)], image_stages)
                for cost, target, image_stages in zip(layer_costs, targets, stages, strict=True)
            ]
            queries.append(np.concatenate([query for query, _ in pairs]))
            matched.append(np.concatenate([target for _, target in pairs]))
        num_queries = output.logits.shape[2]
        counts = torch.tensor([min(len(target), num_queries) for target in targets])
        return Matches(
            torch.repeat_interleave(counts),
            torch.from_numpy(np.stack(queries)),
            torch.from_numpy(np.stack(matched)),
        )

    @torch.no_grad()
    def costs(self, output: ModelOutput, targets: Sequence[Target]) -> Tensor:
        """Return the cost of every pair, (L, B, Q, N), N the most targets of an image; columns beyond are padding."""
        logits, boxes = full_precision(output.logits), full_precision(output.boxes_cxcywh_norm)
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        labels = labels.to(logits.device, non_blocking=True)
        # Padded boxes have a size, so that their costs, which nobody reads, are finite.
        padded = pad_sequence([target.boxes_cxcywh_norm for target in targets], batch_first=True, padding_value=0.5)
        padded = padded.to(boxes, non_blocking=True)
        if self.family is DecoderFamily.DETR:
            class_cost = softmax_cost(logits, labels)
        else:
            class_cost = focal_cost(logits, labels, self.loss.focal_alpha)
        l1_cost = torch.cdist(boxes, padded[None].expand(len(boxes), -1, -1, -1), p=1)
        giou_cost = -giou_pairwise(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(padded))
        loss = self.loss
        return loss.l1_cost * l1_cost + loss.class_cost * class_cost + loss.giou_cost * giou_cost

    def _stages(self, target: Target) -> list[npt.NDArray[np.intp]]:
        """Return the indices of the targets that are matched first, second, ..."""
        if not self.two_stage or target.copy_index is None:
            return [np.arange(len(target))]
        is_copy = target.copy_index.cpu().numpy() > 0
        return [np.flatnonzero(~is_copy), np.flatnonzero(is_copy)]


def _assign(cost: npt.NDArray[np.floating], stages: Sequence[npt.NDArray[np.intp]]) -> Assignment:
    """Assign queries (rows) to targets (columns), stage by stage on the queries that are still free."""
    free = np.arange(len(cost))
    queries, targets = [], []
    for stage in stages:
        rows, columns = linear_sum_assignment(cost[np.ix_(free, stage)])
        queries.append(free[rows])
        targets.append(stage[columns])
        free = np.delete(free, rows)
    return np.concatenate(queries), np.concatenate(targets)


def _check_finite(costs: npt.NDArray[np.floating]) -> None:
    if np.isfinite(costs).all():
        return
    layer, image = np.argwhere(~np.isfinite(costs))[0][:2]
    raise DivergedError(
        "the matching cost is not a finite number: the model's logits or boxes are NaN or infinite",
        where=f"decoder layer {layer}, image {image} of the batch",
        hint="lower the learning rate, or look for damaged targets in this batch",
    )

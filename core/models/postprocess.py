"""From the last decoder layer's logits and boxes to detections in pixels of the original images."""

from __future__ import annotations

import torch
from torch import Tensor

from core.config.schema import PostprocessConfig
from core.models.specs import DecoderFamily
from core.ops.boxes import cxcywh_to_xyxy, norm_to_px
from core.ops.nms import nms_per_class
from core.structures import Detections, ModelOutput


class Postprocess:
    """Turns what a detector says into detections, as the published models do.

    Softmax heads: one detection a query, the best class but "no object", in the order of the queries. With
    NMS: those kept by falling score, then those suppressed in the order of the queries with their scores
    times `suppressed_score_factor`, the first `max_detections` of them.

    Sigmoid heads: the best `max_detections` of query x class by falling score. With NMS: those kept of the best
    `num_candidates`, the first `max_detections` of them.

    Args:
        config: thresholds and counts.
        family: decides on the head.
    """

    def __init__(self, config: PostprocessConfig, family: DecoderFamily) -> None:
        self.config = config
        self.family = family

    @torch.no_grad()
    def __call__(self, output: ModelOutput, original_sizes_hw: Tensor) -> list[Detections]:
        """Return the detections of each image.

        Args:
            output: of B images; only the last layer is read.
            original_sizes_hw: (B, 2), height and width in pixels of the images as they were before resizing.
        """
        logits, boxes_xyxy_norm = output.logits[-1].float(), cxcywh_to_xyxy(output.boxes_cxcywh_norm[-1].float())
        boxes_xyxy_px = norm_to_px(boxes_xyxy_norm, original_sizes_hw)
        select = self._from_softmax if self.family is DecoderFamily.DETR else self._from_sigmoid
        detections = []
        for image_logits, image_boxes_norm, image_boxes_px in zip(logits, boxes_xyxy_norm, boxes_xyxy_px, strict=True):
            query, scores, labels = select(image_logits, image_boxes_norm)
            detections.append(Detections(image_boxes_px[query], scores, labels))
        return detections

    def _from_softmax(self, logits: Tensor, boxes_xyxy_norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, score and label of each detection of one image; (Q, C + 1), (Q, 4) -> 3 x (N,)."""
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
        if not self.config.nms:
            return torch.arange(len(scores), device=scores.device), scores, labels
        kept = nms_per_class(boxes_xyxy_norm, scores, labels, self.config.nms_iou)
        is_suppressed = torch.ones_like(scores, dtype=torch.bool)
        is_suppressed[kept] = False
        scores = torch.where(is_suppressed, scores * self.config.suppressed_score_factor, scores)
        query = torch.cat([kept, is_suppressed.nonzero()[:, 0]])[: self.config.max_detections]
        return query, scores[query], labels[query]

    def _from_sigmoid(self, logits: Tensor, boxes_xyxy_norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, score and label of each detection of one image; (Q, C), (Q, 4) -> 3 x (N,)."""
        num_wanted = self.config.num_candidates if self.config.nms else self.config.max_detections
        prob = logits.sigmoid().flatten()
        scores, index = prob.topk(min(num_wanted, len(prob)))
        num_classes = logits.shape[-1]
        query, labels = index // num_classes, index % num_classes
        if not self.config.nms:
            return query, scores, labels
        kept = nms_per_class(boxes_xyxy_norm[query], scores, labels, self.config.nms_iou)
        kept = kept[: self.config.max_detections]
        return query[kept], scores[kept], labels[kept]

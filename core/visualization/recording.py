"""What a detector's queries do with an image: where they look, and which labels they learn from.

Recording changes none of the model's numbers: it listens to what the decoder layers are called with, and works their
attention out once more beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.config.schema import LabelAugmentationConfig
from core.label_augmentation import augment_labels
from core.losses.matcher import Matcher
from core.models.conditional_decoder import ConditionalDecoderLayer
from core.models.detector import Detector
from core.models.detr_decoder import DetrDecoderLayer
from core.models.encoder import EncodedImages
from core.models.layers import MultiheadAttention
from core.models.specs import DecoderFamily
from core.ops.boxes import cxcywh_to_xyxy
from core.ops.nms import nms_per_class
from core.ops.roi_pool import FeaturePyramid, finite_boxes, pool_roi_tokens
from core.ops.sparse_attention import KeyValueProjection, SparseAttention, attention_weights
from core.structures import ModelOutput, Target

DecoderLayer: TypeAlias = DetrDecoderLayer | ConditionalDecoderLayer


@dataclass(frozen=True)
class DenseLayer:
    """How a decoder layer divided its attention among the encoder's cells.

    Attributes:
        weights: (B, h, Q, H, W), summing to one over the cells; 0 for padded ones.
        stride: image pixels from one cell to the next.
    """

    weights: Tensor
    stride: int


@dataclass(frozen=True)
class SparseLayer:
    """How a decoder layer divided its attention among the RoI tokens of each query's box.

    Attributes:
        weights: (B, h, Q, levels, resolution, resolution) by level, row and column of bins, summing to one over all.
        boxes_xyxy_px: (B, Q, 4), the boxes in pixels of the padded images, not clipped.
        strides: of the levels, image pixels from one cell to the next.
    """

    weights: Tensor
    boxes_xyxy_px: Tensor
    strides: tuple[int, ...]


@dataclass
class AttentionRecord:
    """The cross-attention of a forward pass, decoder layer by decoder layer; weights before any dropout.

    Attributes:
        layers: L of them, once the model was called; of its last call.
        sizes_hw: (B, 2), un-padded height and width of the images in pixels.
    """

    layers: list[DenseLayer | SparseLayer] = field(default_factory=list)
    sizes_hw: Tensor = field(default_factory=lambda: torch.zeros(0, 2))


@contextmanager
def record_attention(model: Detector) -> Iterator[AttentionRecord]:
    """Record where the queries of a detector look, as long as the context lasts; afterwards it is as it was.

    Example:
        >>> with torch.inference_mode(), record_attention(model) as record:
        ...     output = model(images)
        >>> record.layers[0].weights.shape
    """
    record = AttentionRecord()
    seen: list[EncodedImages] = []

    def begin(_decoder: nn.Module, inputs: tuple[Any, ...]) -> None:
        record.layers.clear()
        seen[:] = [inputs[1]]
        record.sizes_hw = inputs[1].sizes_hw

    def keep_dense(weights: Tensor) -> None:
        index = len(model.backbone.strides) - 1  # the encoder's map; an extra level comes after it
        height, width = seen[0].pyramid.features[index].shape[-2:]
        record.layers.append(DenseLayer(torch.unflatten(weights, -1, (height, width)), model.strides[index]))

    layers = cast("list[DecoderLayer]", list(model.decoder.layers))
    originals = [layer.sparse_attention for layer in layers]
    hooks = [model.decoder.register_forward_pre_hook(begin)]
    try:
        for layer in layers:
            layer.sparse_attention = _RecordedSparseAttention(layer.sparse_attention, model, record.layers.append)
            hooks.append(_listen(layer, keep_dense))
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        for layer, original in zip(layers, originals, strict=True):
            layer.sparse_attention = original


class _RecordedSparseAttention:
    """Leaves the sparse attention to another, and keeps its weights."""

    def __init__(self, inner: SparseAttention, model: Detector, keep: Callable[[SparseLayer], None]) -> None:
        self.inner = inner
        self.resolution, self.roi_backend = model.config.roi_resolution, model.config.roi_backend
        self.keep = keep

    def __call__(
        self,
        content_query: Tensor,
        position_query: Tensor | None,
        pyramid: FeaturePyramid,
        boxes_xyxy_px: Tensor,
        projection: KeyValueProjection,
        *,
        scale: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """See `SparseAttention`."""
        with torch.no_grad():
            tokens, positions = pool_roi_tokens(pyramid, boxes_xyxy_px, self.resolution, self.roi_backend)
            weights = attention_weights(content_query, position_query, tokens, positions, projection, scale=scale)
        by_bin = torch.unflatten(weights.transpose(1, 2), -1, (-1, self.resolution, self.resolution))
        self.keep(SparseLayer(by_bin, finite_boxes(boxes_xyxy_px), pyramid.strides))
        return self.inner(
            content_query, position_query, pyramid, boxes_xyxy_px, projection, scale=scale, dropout=dropout
        )


def _listen(layer: DecoderLayer, keep: Callable[[Tensor], None]) -> RemovableHandle:
    """Hand the weights (B, h, Q, N) of a layer's dense cross-attention to `keep` whenever it is called."""
    if isinstance(layer, ConditionalDecoderLayer):

        def projected(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            query, key, _value, padding_mask = inputs
            keep(_dense_weights(query, key, padding_mask))

        return layer.cross_attn.register_forward_hook(projected)

    def attended(module: MultiheadAttention, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        size = (module.num_heads, module.head_dim)
        query, key = (
            torch.unflatten(project(tokens), -1, size)
            for project, tokens in zip(module.projections()[:2], inputs[:2], strict=True)
        )
        keep(_dense_weights(query, key, inputs[3]))

    return layer.multihead_attn.register_forward_hook(attended)


@torch.no_grad()
def _dense_weights(query: Tensor, key: Tensor, padding_mask: Tensor) -> Tensor:
    """Return the weights of scaled dot-product attention; (B, Q, h, d), (B, N, h, d), (B, N) bool -> (B, h, Q, N)."""
    logits = query.shape[-1] ** -0.5 * torch.einsum("bqhc,bnhc->bhqn", query, key)
    weights: Tensor = logits.masked_fill(padding_mask[:, None, None], -torch.inf).softmax(dim=-1)
    return weights


@dataclass(frozen=True)
class QueryAnswers:
    """What K queries say about one image, decoder layer by decoder layer.

    Attributes:
        query_index: (K,) int64.
        scores: (L, K) in [0, 1], of the best class.
        labels: (L, K) int64, that class.
        boxes_xyxy_norm: (L, K, 4).
    """

    query_index: Tensor
    scores: Tensor
    labels: Tensor
    boxes_xyxy_norm: Tensor


@torch.no_grad()
def best_queries(output: ModelOutput, family: DecoderFamily, nms_iou: float, count: int) -> QueryAnswers:
    """Return the queries that are surest in the last layer, without those that only repeat a surer one.

    Args:
        output: of a batch of one image.
        family: decides on the classification head.
        nms_iou: the overlap above which a query repeats another of the same class.
        count: how many at most.
    """
    logits, boxes = output.logits[:, 0].float().cpu(), output.boxes_cxcywh_norm[:, 0].float().cpu()
    prob = logits.softmax(-1)[..., :-1] if family is DecoderFamily.DETR else logits.sigmoid()
    scores, labels = prob.max(-1)
    boxes_xyxy_norm = cxcywh_to_xyxy(boxes)
    chosen = nms_per_class(boxes_xyxy_norm[-1], scores[-1], labels[-1], nms_iou)[:count]
    return QueryAnswers(chosen, scores[:, chosen], labels[:, chosen], boxes_xyxy_norm[:, chosen])


@dataclass(frozen=True)
class LabelMatches:
    """Which queries the last decoder layer would learn from which label of one image.

    The M matches come by rising query index; of more labels, repeated ones included, than queries some have none.

    Attributes:
        boxes_cxcywh_norm: (N, 4), the labels as annotated.
        labels: (N,) their classes.
        query_index: (M,) int64.
        label_index: (M,) int64, positions in `labels`.
        copy_index: (M,) int64, 0 for the label as annotated, 1, 2, ... for its copies by label augmentation.
        query_boxes_cxcywh_norm: (M, 4), what the queries say.
    """

    boxes_cxcywh_norm: Tensor
    labels: Tensor
    query_index: Tensor
    label_index: Tensor
    copy_index: Tensor
    query_boxes_cxcywh_norm: Tensor

    def of(self, label: int) -> list[tuple[int, int]]:
        """Return (query, copy) of each match of one label, the label as annotated first."""
        chosen = self.label_index == label
        pairs = zip(self.query_index[chosen].tolist(), self.copy_index[chosen].tolist(), strict=True)
        return sorted(pairs, key=lambda pair: pair[::-1])


@torch.no_grad()
def match_labels(
    output: ModelOutput, target: Target, policy: LabelAugmentationConfig, matcher: Matcher, generator: torch.Generator
) -> LabelMatches:
    """Repeat the labels of one image as training does, and match them in the last decoder layer.

    Args:
        output: of a batch of this image alone.
        target: its labels as annotated, on any device.
        policy: of label augmentation; without one each label stands for itself.
        matcher: that of training.
        generator: read by repeat ratio.

    Raises:
        DivergedError: a matching cost is not a finite number.
    """
    last = ModelOutput(output.logits[-1:].cpu(), output.boxes_cxcywh_norm[-1:].cpu())
    target = target.to(torch.device("cpu"))
    # Positions in place of classes go through augmentation unharmed, and say where each copy comes from.
    numbered = replace(target, labels=torch.arange(len(target)))
    repeated = augment_labels(numbered, policy, last.logits.shape[2], generator)
    copy_index = torch.zeros_like(repeated.labels) if repeated.copy_index is None else repeated.copy_index
    trained_on = replace(repeated, labels=target.labels[repeated.labels])
    query_index, target_index = matcher(last, [trained_on]).of(layer=0, image=0)
    order = query_index.argsort()
    query_index, target_index = query_index[order], target_index[order]
    return LabelMatches(
        target.boxes_cxcywh_norm,
        target.labels,
        query_index,
        repeated.labels[target_index],
        copy_index[target_index],
        last.boxes_cxcywh_norm[0, 0, query_index].float(),
    )

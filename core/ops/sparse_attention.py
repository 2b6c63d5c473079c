"""The sparse cross-attention: every query attends to the RoI tokens of its own box, and to nothing else.

`SparseAttention` is the one interface behind which it sits. `PlainSparseAttention` computes it step by step
and is the oracle: whatever replaces it gives the same numbers and the same gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from core.ops.dropout import drop
from core.ops.roi_pool import FeaturePyramid, find_roi_align, pool_roi_tokens


class Affine(NamedTuple):
    """The weight (D, D) and bias (D,) of a linear layer."""

    weight: Tensor
    bias: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.linear(tokens, self.weight, self.bias)


@dataclass(frozen=True)
class KeyValueProjection:
    """How RoI tokens become keys and values.

    Attributes:
        content_key: of the features; of feature + position where there is no `position_key`.
        value: of the features.
        position_key: of the positions (conditional decoder), or None (DETR's decoder).
    """

    content_key: Affine
    value: Affine
    position_key: Affine | None = None


class SparseAttention(Protocol):
    """Attention of each query to the tokens that RoIAlign crops from its box (paper, section 4.1).

    With h heads, token features x_n and positions p_n, head by head:

        no position_key:  logit_n = scale * content_query . K(x_n + p_n)
        position_key P:   logit_n = scale * (content_query . K(x_n) + position_query . P(p_n))
        result          = sum_n dropout(softmax(logit))_n * V(x_n)

    No token is masked: a token outside the padded image is zero and takes its share of the softmax. All
    implementations give the same numbers to rounding. On a CPU they drop the same weights with the same seed, and
    equal inputs and as many threads give equal bits.
    """

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
        """Return what each query gathers, before the output projection.

        Args:
            content_query: (B, Q, h, D/h), projected.
            position_query: (B, Q, h, D/h), projected; given if and only if `projection.position_key` is.
            pyramid: levels of B images with D channels, finite, of any dtype and layout; it may serve many calls.
            boxes_xyxy_px: (B, Q, 4) in pixels of the padded images, not clipped, float32 or better, as half precision
                cannot tell neighbouring pixels apart; a coordinate that is not finite counts as 0.
            projection: of keys and values.
            scale: of the logits.
            dropout: probability that an attention weight is dropped now; 0 outside training.

        Returns:
            (B, Q, D), in the dtype of the projected values; B and Q may be 0. Gradients flow to queries, features,
            projection and to positions that require them (learned embeddings); boxes get none. That of a key's bias is
            zero but for rounding.
        """
        ...


class PlainSparseAttention:
    """Crops, projects, softmaxes and sums with one operator each.

    Args:
        resolution: RoI bins along each side of a box.
        roi_backend: see `pool_roi_tokens`.

    Raises:
        MachineError: the backend is not installed.
    """

    def __init__(self, resolution: int, roi_backend: str = "torchvision") -> None:
        find_roi_align(roi_backend)
        self.resolution = resolution
        self.roi_backend = roi_backend

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
        tokens, positions = pool_roi_tokens(pyramid, boxes_xyxy_px, self.resolution, self.roi_backend)
        weights = attention_weights(content_query, position_query, tokens, positions, projection, scale=scale)
        values = _split_heads(projection.value(tokens), content_query.shape[2])
        return torch.einsum("bqhn,bqnhc->bqhc", drop(weights, dropout), values).flatten(2)


def attention_weights(
    content_query: Tensor,
    position_query: Tensor | None,
    tokens: Tensor,
    positions: Tensor,
    projection: KeyValueProjection,
    *,
    scale: float,
) -> Tensor:
    """Return how each head of a query divides its attention among the query's RoI tokens; see `SparseAttention`.

    Args:
        content_query: (B, Q, h, D/h), projected.
        position_query: (B, Q, h, D/h), projected; given if and only if `projection.position_key` is.
        tokens: (B, Q, N, D), as `pool_roi_tokens` returns them.
        positions: (B, Q, N, D), likewise.
        projection: of keys.
        scale: of the logits.

    Returns:
        (B, Q, h, N), at least 0 and summing to one over N; nothing is dropped.
    """
    num_heads = content_query.shape[2]

    def dot(query: Tensor, keys: Tensor) -> Tensor:
        return torch.einsum("bqhc,bqnhc->bqhn", query, _split_heads(keys, num_heads))

    if projection.position_key is None or position_query is None:
        logits = dot(content_query, projection.content_key(tokens + positions))
    else:
        logits = dot(content_query, projection.content_key(tokens))
        logits = logits + dot(position_query, projection.position_key(positions))
    return (scale * logits).softmax(dim=-1)


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(..., D) -> (..., h, D/h)."""
    heads: Tensor = torch.unflatten(tokens, -1, (num_heads, -1))
    return heads

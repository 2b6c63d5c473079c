"""The sparse cross-attention without projected tokens: the same numbers as the plain one, many times faster.

Each RoI has a single query, so that the projections of keys and values can change sides. With W a head's weight:

    query . (W_key x_n)            = (W_key^T query) . x_n         one vector projected instead of all tokens
    sum_n a_n (W_value x_n + bias) = W_value (sum_n a_n x_n) + bias sum_n a_n

A key's bias adds the same to all logits of a query, and the softmax takes it away again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from core.ops.roi_pool import SAMPLING_RATIO, FeaturePyramid, finite_boxes
from core.ops.roi_table import sum_rows
from core.ops.sparse_attention import KeyValueProjection


class AbsorbedSparseAttention:
    """Looks tokens up in the pyramid's table, and takes the projections to the side of the queries.

    It implements `SparseAttention`. Key biases have no influence; their gradient is zero, where it is rounding
    noise in `PlainSparseAttention`.

    Args:
        resolution: RoI bins along each side of a box.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

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
        tokens, positions = self._pool(pyramid, boxes_xyxy_px)
        content_query = _absorb(scale * content_query, projection.content_key.weight)
        unused_bias = projection.content_key.bias
        if projection.position_key is None or position_query is None:
            position_query = content_query
        else:
            position_query = _absorb(scale * position_query, projection.position_key.weight)
            unused_bias = unused_bias + projection.position_key.bias
        logits = content_query @ tokens.transpose(-1, -2) + position_query @ positions.transpose(-1, -2)
        weights = F.dropout(logits.softmax(dim=-1), dropout)
        gathered = weights @ tokens
        num_heads = content_query.shape[2]
        values = torch.einsum("bqhd,hcd->bqhc", gathered, _split_heads(projection.value.weight, num_heads))
        # Every parameter shall have a gradient, be it zero: distributed training waits for all of them.
        bias = _split_heads(projection.value.bias + 0 * unused_bias, num_heads)
        # Dropout leaves weights that do not sum to one.
        return (values + (weights.sum(-1, keepdim=True) * bias).to(values.dtype)).flatten(2)

    def _pool(self, pyramid: FeaturePyramid, boxes_xyxy_px: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens and their positions, each (B, Q, N, D); they are those of `pool_roi_tokens`."""
        table = pyramid.table
        bins = table.find_bins(finite_boxes(boxes_xyxy_px), self.resolution, SAMPLING_RATIO)
        num_tokens = len(pyramid.features) * self.resolution**2

        def pool(rows: Tensor) -> Tensor:
            return sum_rows(rows, bins).to(table.dtype).view(*boxes_xyxy_px.shape[:2], num_tokens, rows.shape[-1])

        return pool(table.features), pool(table.positions)


def _absorb(query: Tensor, weight: Tensor) -> Tensor:
    """Take a key projection to the queries' side, head by head; (B, Q, h, D/h), (D, D) -> (B, Q, h, D)."""
    return torch.einsum("bqhc,hcd->bqhd", query, _split_heads(weight, query.shape[2]))


def _split_heads(outputs: Tensor, num_heads: int) -> Tensor:
    """(D, ...) -> (h, D/h, ...)."""
    heads: Tensor = torch.unflatten(outputs, 0, (num_heads, -1))
    return heads

"""The sparse cross-attention without projected tokens: the same numbers as the plain one, many times faster.

Each RoI has a single query, so that the projections of keys and values can change sides. With W a head's weight:

    query . (W_key x_n)            = (W_key^T query) . x_n         one vector projected instead of all tokens
    sum_n a_n (W_value x_n + bias) = W_value (sum_n a_n x_n) + bias sum_n a_n

A key's bias adds the same to all logits of a query, and the softmax takes it away again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.ops.dropout import draw_kept, keep_probability
from core.ops.roi_pool import SAMPLING_RATIO, FeaturePyramid, finite_boxes
from core.ops.roi_table import RoiBins, RoiTable, spread_sums, sum_rows
from core.ops.sparse_attention import KeyValueProjection

_CHUNK = 64
"""Queries whose tokens are looked up at a time on a CPU: few enough for its cache."""


class AbsorbedSparseAttention:
    """Looks tokens up in the pyramid's table, and takes the projections to the side of the queries.

    It implements `SparseAttention`. Key biases have no influence; their gradient is zero, where it is rounding
    noise in `PlainSparseAttention`. For the backward pass it keeps queries and bins, but no token.

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
        table, num_heads = pyramid.table, content_query.shape[2]
        content_query = _absorb(scale * content_query, projection.content_key.weight)
        unused_bias = projection.content_key.bias
        if projection.position_key is None or position_query is None:
            position_query = content_query
        else:
            position_query = _absorb(scale * position_query, projection.position_key.weight)
            unused_bias = unused_bias + projection.position_key.bias
        gathered, weight_sums = self._gather(
            content_query.flatten(0, 1), position_query.flatten(0, 1), table, finite_boxes(boxes_xyxy_px), dropout
        )
        values = torch.einsum("rhd,hcd->rhc", gathered, _split_heads(projection.value.weight, num_heads))
        # Every parameter shall have a gradient, be it zero: distributed training waits for all of them.
        bias = _split_heads(projection.value.bias + 0 * unused_bias, num_heads)
        # Dropout leaves weights that do not sum to one.
        values = values + (weight_sums[..., None] * bias).to(values.dtype)
        return torch.unflatten(values.flatten(1), 0, boxes_xyxy_px.shape[:2])

    def _gather(
        self, content_query: Tensor, position_query: Tensor, table: RoiTable, boxes_xyxy_px: Tensor, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """Return each query's tokens, weighted and summed, (R, h, D), and its sums of weights (R, h).

        Args:
            content_query: (R, h, D), absorbed and scaled; R = B x Q.
            position_query: likewise.
            table: of B images.
            boxes_xyxy_px: (B, Q, 4), finite.
            dropout: see `SparseAttention`.
        """
        bins = table.find_bins(boxes_xyxy_px, self.resolution, SAMPLING_RATIO)
        gathered, weight_sums = _GatherTokens.apply(
            content_query, position_query, table.features, table.positions, bins, dropout
        )
        return gathered, weight_sums


class _GatherTokens(torch.autograd.Function):
    """Looks tokens up, weighs them by softmax, and sums them; R queries of h heads and N tokens of D channels.

    Tokens are looked up again in the backward pass. With the weights w, 1 or 0 for kept ones k, their probability
    p, and the gradients g of what was gathered and s of the sum of weights:

        logit_n    = content . x_n + position . p_n
        gathered   = sum_n (w_n k_n / p) x_n
        grad_w_n   = (g . x_n + s) k_n / p
        grad_logit = w (grad_w - sum_n w_n grad_w_n)
        grad_x_n   = sum over heads of grad_logit_n content + (w_n k_n / p) g
    """

    @staticmethod
    def forward(
        ctx: Any,
        content_query: Tensor,
        position_query: Tensor,
        features: Tensor,
        positions: Tensor,
        bins: RoiBins,
        dropout: float,
    ) -> tuple[Tensor, Tensor]:
        num_queries, num_heads, _ = content_query.shape
        num_tokens = len(bins.rows) // max(num_queries, 1)
        kept = draw_kept((num_queries, num_heads, num_tokens), dropout, features.device) if dropout else None
        ctx.save_for_backward(content_query, position_query, features, positions, *bins, kept)
        ctx.keep_scale = 1 / keep_probability(dropout)
        gathered = torch.empty_like(content_query)
        weight_sums = features.new_empty(num_queries, num_heads)
        with torch.autocast(features.device.type, enabled=False):
            for rows in _chunks(content_query):
                tokens, places = _look_up(features, positions, bins, rows, num_tokens, content_query.dtype)
                weights = _weigh(content_query[rows], position_query[rows], tokens, places)
                if kept is not None:
                    weights.mul_(kept[rows]).mul_(ctx.keep_scale)
                torch.bmm(weights.to(tokens.dtype), tokens, out=gathered[rows])
                torch.sum(weights, -1, out=weight_sums[rows])
        return gathered, weight_sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_gathered: Tensor, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        content_query, position_query, features, positions, bin_rows, bin_weights, kept = ctx.saved_tensors
        bins = RoiBins(bin_rows, bin_weights)
        num_queries, _, dim = content_query.shape
        num_tokens = len(bin_rows) // max(num_queries, 1)
        grad_content, grad_position = torch.empty_like(content_query), torch.empty_like(position_query)
        grad_tokens = content_query.new_empty(num_queries, num_tokens, dim)
        grad_places = torch.empty_like(grad_tokens) if ctx.needs_input_grad[3] else None
        for rows in _chunks(content_query):
            tokens, places = _look_up(features, positions, bins, rows, num_tokens, content_query.dtype)
            weights = _weigh(content_query[rows], position_query[rows], tokens, places)
            grad_weights = grad_sums[rows, :, None] + grad_gathered[rows] @ tokens.transpose(1, 2)
            shares = weights
            if kept is not None:
                factors = kept[rows].to(weights.dtype).mul_(ctx.keep_scale)
                grad_weights.mul_(factors)
                shares = weights * factors
            mean = (weights * grad_weights).sum(-1, keepdim=True)
            grad_logits = grad_weights.sub_(mean).mul_(weights).to(tokens.dtype)
            torch.bmm(grad_logits, tokens, out=grad_content[rows])
            torch.bmm(grad_logits, places, out=grad_position[rows])
            by_head = torch.cat([grad_logits, shares.to(tokens.dtype)], dim=1).transpose(1, 2)
            vectors = torch.cat([content_query[rows], grad_gathered[rows]], dim=1)
            torch.bmm(by_head, vectors, out=grad_tokens[rows])
            if grad_places is not None:
                torch.bmm(grad_logits.transpose(1, 2), position_query[rows], out=grad_places[rows])
        grad_features, grad_positions = (
            None if grad is None else spread_sums(grad.flatten(0, 1).to(features.dtype), bins, len(features))
            for grad in (grad_tokens, grad_places)
        )
        return grad_content, grad_position, grad_features, grad_positions, None, None


def _look_up(
    features: Tensor, positions: Tensor, bins: RoiBins, rows: slice, num_tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the tokens of some queries and their positions, each (R, N, D); they are those of `pool_roi_tokens`."""
    own = slice(rows.start * num_tokens, rows.stop * num_tokens)
    own_bins = RoiBins(bins.rows[own], bins.weights[own])
    tokens, places = (
        sum_rows(table, own_bins).to(dtype).view(-1, num_tokens, table.shape[-1]) for table in (features, positions)
    )
    return tokens, places


def _weigh(content_query: Tensor, position_query: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """Return the attention weights in full precision; two of (R, h, D), two of (R, N, D) -> (R, h, N)."""
    logits = content_query @ tokens.transpose(1, 2)
    logits = torch.baddbmm(logits, position_query, places.transpose(1, 2))
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _chunks(queries: Tensor) -> Iterator[slice]:
    """Yield slices of R queries to work on at a time: all of them but on a CPU."""
    step = _CHUNK if queries.device.type == "cpu" else max(len(queries), 1)
    for first in range(0, len(queries), step):
        yield slice(first, min(first + step, len(queries)))


def _absorb(query: Tensor, weight: Tensor) -> Tensor:
    """Take a key projection to the queries' side, head by head; (B, Q, h, D/h), (D, D) -> (B, Q, h, D)."""
    return torch.einsum("bqhc,hcd->bqhd", query, _split_heads(weight, query.shape[2]))


def _split_heads(outputs: Tensor, num_heads: int) -> Tensor:
    """(D, ...) -> (h, D/h, ...)."""
    heads: Tensor = torch.unflatten(outputs, 0, (num_heads, -1))
    return heads

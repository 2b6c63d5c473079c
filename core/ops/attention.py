"""Attention of queries to all keys, with little kept for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from core.ops.dropout import draw_kept, keep_probability

_CHUNK = 1 << 18
"""How many pairs of query and key are worked on at a time: few enough for a processor's cache."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Return softmax(query . key / sqrt(dk)) value (Vaswani et al. 2017), head by head.

    Args:
        query: (B, h, Q, dk).
        key: (B, h, N, dk).
        value: (B, h, N, dv).
        padding_mask: (B, N) bool, True for keys that nobody sees; each image has others.
        dropout: probability that an attention weight is dropped now; 0 outside training.

    Returns:
        (B, h, Q, dv) in the dtype of the values. Gradients flow to query, key and value.
    """
    if dropout == 0 or query.device.type != "cpu" or torch.compiler.is_compiling():
        seen = None if padding_mask is None else ~padding_mask[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, seen, dropout)
    # PyTorch has no fused attention with dropout for CPUs; what it does instead keeps three matrices of Q x N. Compiled
    # code may: of a loop whose length depends on the image a compiler would make a graph for each length.
    if padding_mask is None:
        padding_mask = torch.zeros(len(key), key.shape[2], dtype=torch.bool)
    attended: Tensor = _DroppedAttention.apply(query, key, value, padding_mask, dropout)
    return attended


class _DroppedAttention(torch.autograd.Function):
    """Keeps one byte for each pair of query and key; weights are worked out once more in the backward pass.

    With the weights w, 1 or 0 for kept ones k, their probability p, and the gradient g of the result:

        result     = (w k / p) value
        grad_w     = (g value^T) k / p
        grad_logit = w (grad_w - sum_n w_n grad_w_n) = w (grad_w - g . result)
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor, dropout: float) -> Tensor:
        num_images, num_heads = query.shape[:2]
        ctx.scale = 1 / keep_probability(dropout)
        bias = torch.zeros(padding_mask.shape, dtype=query.dtype).masked_fill_(padding_mask, -torch.inf)
        bias = bias.repeat_interleave(num_heads, 0)[:, None]
        flat_query, flat_key, flat_value = (
            (query * query.shape[-1] ** -0.5).flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
        )
        kept = draw_kept((*flat_query.shape[:2], flat_key.shape[1]), dropout, query.device)
        attended = flat_query.new_empty(*flat_query.shape[:2], value.shape[-1])
        with torch.autocast("cpu", enabled=False):
            for rows in _chunks(kept):
                weights = _weigh(flat_query[rows], flat_key[rows], bias[rows]).mul_(kept[rows])
                torch.bmm(weights.to(value.dtype), flat_value[rows], out=attended[rows])
        attended.mul_(ctx.scale)
        ctx.save_for_backward(flat_query, flat_key, flat_value, bias, kept, attended)
        by_head: Tensor = attended.view(num_images, num_heads, *attended.shape[1:])
        return by_head

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, kept, attended = ctx.saved_tensors
        shape = grad.shape[:2]
        grad = grad.flatten(0, 1)
        means = (grad * attended).sum(-1, keepdim=True)
        grad = grad * ctx.scale
        grad_query, grad_key, grad_value = (torch.empty_like(each) for each in (query, key, value))
        for rows in _chunks(kept):
            weights = _weigh(query[rows], key[rows], bias[rows])
            own_kept = kept[rows].to(weights.dtype)
            grad_logits = torch.bmm(grad[rows], value[rows].transpose(1, 2)).to(weights.dtype).mul_(own_kept)
            # A result that was rounded to half precision does not make the gradients of a query's logits sum to zero.
            is_exact = weights.dtype == query.dtype
            grad_logits.sub_(means[rows] if is_exact else (weights * grad_logits).sum(-1, keepdim=True)).mul_(weights)
            grad_logits = grad_logits.to(query.dtype)
            torch.bmm(grad_logits, key[rows], out=grad_query[rows])
            torch.bmm(grad_logits.transpose(1, 2), query[rows], out=grad_key[rows])
            shares = weights.mul_(own_kept).to(value.dtype)
            torch.bmm(shares.transpose(1, 2), grad[rows], out=grad_value[rows])
        grad_query.mul_(query.shape[-1] ** -0.5)
        return *(each.view(*shape, *each.shape[1:]) for each in (grad_query, grad_key, grad_value)), None, None


def _weigh(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Return the attention weights in single precision at least; (n, Q, dk), (n, N, dk), (n, 1, N) -> (n, Q, N)."""
    logits = torch.baddbmm(bias, query, key.transpose(1, 2))
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _chunks(pairs: Tensor) -> Iterator[slice]:
    """Yield slices of the first dimension of (B x h, Q, N) that have at most `_CHUNK` pairs, or one matrix."""
    step = max(1, _CHUNK // max(1, pairs.shape[1] * pairs.shape[2]))
    for first in range(0, len(pairs), step):
        yield slice(first, first + step)

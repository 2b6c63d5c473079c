"""The sparse cross-attention by Triton kernels that sample RoI tokens and never write them to memory.

It has run in Triton's interpreter alone, and been compiled for GPUs that it did not run on: numbers and gradients are
tested, its speed is not measured. Hence it is chosen by `model.attention=triton`, and never by itself.

What a step moves for a query with N = 48 tokens of D = 256 channels in float32, and h = 8 heads:

                                     model.attention=fast     here
    tokens and positions, 2 N D      98 kB, written twice     never written
    gradients of tokens, N D         49 kB, written once      never written
    what tokens are made of          6 kB                     0.8 kB, by axis
    attention weights, h N           1.5 kB                   1.5 kB
    cells read, 16 N D at a time     0.8 MB, 2 + 2 times      0.8 MB, 3 + 3 times (forward + backward)
    gradients added to cells         0.8 MB                   0.8 MB

Neighbouring sampling points share cells, and queries look at the same objects, so that cells come from caches for the
most part, and each cell of the table (90 MB for four images of 800 x 1333 pixels) from memory about once a pass. Which
of the two weighs more can only be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.errors import MachineError
from core.ops.absorbed_attention import AbsorbedSparseAttention
from core.ops.dropout import draw_kept, keep_probability
from core.ops.roi_pool import SAMPLING_RATIO
from core.ops.roi_table import RoiAxes, RoiTable

_BLOCK_TOKENS, _BLOCK_DIM = 16, 64
"""A tile: 8 values for each of 128 threads. With 256 channels, compiled for sm_80, sm_90 and sm_100, a thread has at
most 144 registers, none of them spilled, and a block 8 kB of shared memory."""

_LEAST_HEADS = 16


class TritonSparseAttention(AbsorbedSparseAttention):
    """Samples tokens in the kernels that multiply with them, and takes the projections to the side of the queries.

    It implements `SparseAttention`. Tables of float64 are computed in float64, all others in float32; tokens of half
    precision are not rounded. On a GPU the gradients of features are summed by atomic additions, in no fixed order, so
    that two equal steps may differ by float rounding. What dropout drops is drawn outside. `torch.compile` leaves it as
    it is.

    Args:
        resolution: RoI bins along each side of a box.

    Raises:
        MachineError: Triton is not installed, or there is no CUDA device to run it on. TRITON_INTERPRET=1, set before
            Python starts, lets it run on the CPU, for tests: it is very slow.
    """

    def __init__(self, resolution: int) -> None:
        super().__init__(resolution)
        _find_kernels()

    def _gather(
        self, content_query: Tensor, position_query: Tensor, table: RoiTable, boxes_xyxy_px: Tensor, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """See `AbsorbedSparseAttention`.

        Raises:
            MachineError: the model is not on a CUDA device.
        """
        axes = table.find_axes(boxes_xyxy_px, self.resolution, SAMPLING_RATIO)
        return attend_rois(content_query, position_query, table.features, table.positions, axes, dropout)


def attend_rois(
    content_query: Tensor,
    position_query: Tensor,
    features: Tensor,
    positions: Tensor,
    axes: RoiAxes,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attend to tokens x_n of features with positions p_n: w_n = dropout(softmax(content . x_n + position . p_n)).

    Args:
        content_query: (R, h, D), of any float dtype, as all but `axes.rows`; R = B x Q.
        position_query: (R, h, D).
        features: (rows, D), of a `RoiTable` or laid out like one.
        positions: (rows, D), likewise.
        axes: what the tokens of B x Q boxes are made of.
        dropout: probability that a weight is dropped now.

    Returns:
        sum_n w_n x_n (R, h, D) in the dtype of the content query, and sum_n w_n (R, h) in float64 or float32. Gradients
        flow to queries, features and positions.

    Raises:
        MachineError: there is no CUDA device, or tensors are not on it.
    """
    if features.device.type != "cuda" and not _find_kernels().IS_INTERPRETED:
        raise _unusable(f"Triton's kernels do not run on {features.device.type}")
    gathered, weight_sums = _attend(content_query, position_query, features, positions, *axes, dropout)
    return gathered, weight_sums


class _RoiAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        content_query: Tensor,
        position_query: Tensor,
        features: Tensor,
        positions: Tensor,
        rows: Tensor,
        weights: Tensor,
        dropout: float,
    ) -> tuple[Tensor, Tensor]:
        axes = RoiAxes(rows.contiguous(), weights.contiguous())
        logits = _score(content_query, features, axes) + _score(position_query, positions, axes)
        attention = logits.softmax(dim=-1)
        ctx.keep_scale = 1 / keep_probability(dropout)
        mask = draw_kept(attention.shape, dropout, attention.device) if dropout else None
        kept = _drop(attention, mask, ctx.keep_scale)
        ctx.save_for_backward(content_query, position_query, features, positions, *axes, attention, mask)
        return _gather(kept, features, axes).to(content_query.dtype), kept.sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_gathered: Tensor, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        content_query, position_query, features, positions, rows, weights, attention, mask = ctx.saved_tensors
        axes = RoiAxes(rows, weights)
        kept = _drop(attention, mask, ctx.keep_scale)
        grad_kept = _score(grad_gathered, features, axes) + grad_sums[..., None]
        grad_attention = _drop(grad_kept, mask, ctx.keep_scale)
        grad_logits = attention * (grad_attention - (attention * grad_attention).sum(dim=-1, keepdim=True))
        needs_content, needs_position, needs_features, needs_positions, *_ = ctx.needs_input_grad
        grad_content = grad_position = grad_features = grad_positions = None
        if needs_content:
            grad_content = _gather(grad_logits, features, axes).to(content_query.dtype)
        if needs_position:
            grad_position = _gather(grad_logits, positions, axes).to(position_query.dtype)
        if needs_features:
            # Tokens are compared and summed; both at once, as if there were twice as many heads.
            shares = torch.cat([grad_logits, kept], dim=1)
            vectors = torch.cat([content_query, grad_gathered], dim=1)
            grad_features = _scatter(shares, vectors, features, axes)
        if needs_positions:
            grad_positions = _scatter(grad_logits, position_query, positions, axes)
        return grad_content, grad_position, grad_features, grad_positions, None, None, None


# There is nothing to gain from tracing launches, and in the interpreter they cannot be traced.
_attend = torch.compiler.disable(_RoiAttention.apply)  # type: ignore[no-untyped-call]


def _drop(values: Tensor, mask: Tensor | None, keep_scale: float) -> Tensor:
    return values if mask is None else values * mask * keep_scale


def _score(vectors: Tensor, table: Tensor, axes: RoiAxes) -> Tensor:
    """Return the scalar products of vectors (R, h, D) and their query's tokens, (R, h, N)."""
    num_tokens = _num_tokens(axes)
    scores = vectors.new_empty(*vectors.shape[:2], num_tokens, dtype=_exact(table))
    tensors = (vectors.contiguous(), table.contiguous(), *axes, scores)
    _launch("score_tokens", tensors, scores.shape, table.shape[1], axes, -(-num_tokens // _BLOCK_TOKENS))
    return scores


def _gather(shares: Tensor, table: Tensor, axes: RoiAxes) -> Tensor:
    """Return the sums of each query's tokens, weighted by shares (R, h, N), (R, h, D)."""
    dim = table.shape[1]
    gathered = shares.new_empty(*shares.shape[:2], dim, dtype=_exact(table))
    tensors = (shares.contiguous(), table.contiguous(), *axes, gathered)
    _launch("gather_tokens", tensors, shares.shape, dim, axes, -(-dim // _BLOCK_DIM))
    return gathered


def _scatter(shares: Tensor, vectors: Tensor, table: Tensor, axes: RoiAxes) -> Tensor:
    """Return the gradient of the table whose tokens have sum_h shares_hn vectors_h as theirs."""
    change = torch.zeros_like(table, dtype=_exact(table), memory_format=torch.contiguous_format)
    tensors = (shares.contiguous(), vectors.contiguous(), change, *axes)
    _launch("scatter_tokens", tensors, shares.shape, table.shape[1], axes, -(-shares.shape[-1] // _BLOCK_TOKENS))
    return change.to(table.dtype)


def _launch(
    kernel: str, tensors: tuple[Tensor, ...], shape: torch.Size, dim: int, axes: RoiAxes, num_tiles: int
) -> None:
    """Run a kernel of `triton_kernels` for attention weights of this shape (R, h, N)."""
    num_queries, num_heads, num_tokens = shape
    if num_queries == 0:
        return
    run: Callable[..., object] = getattr(_find_kernels(), kernel)[num_queries, num_tiles]
    resolution, num_cells = axes.rows.shape[-2:]
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
        run(
            *tensors,
            NUM_HEADS=num_heads,
            NUM_TOKENS=num_tokens,
            DIM=dim,
            RESOLUTION=resolution,
            NUM_CELLS=num_cells,
            BLOCK_HEADS=max(_LEAST_HEADS, 1 << (num_heads - 1).bit_length()),
            BLOCK_TOKENS=_BLOCK_TOKENS,
            BLOCK_DIM=_BLOCK_DIM,
        )


def _num_tokens(axes: RoiAxes) -> int:
    num_levels, _, resolution, _ = axes.rows.shape[2:]
    return num_levels * resolution**2


def _exact(table: Tensor) -> torch.dtype:
    return torch.promote_types(table.dtype, torch.float32)


def _find_kernels() -> ModuleType:
    """Return the module of kernels.

    Raises:
        MachineError: they cannot run on this machine.
    """
    try:
        from core.ops import triton_kernels
    except ImportError as error:
        raise _unusable("Triton is not installed") from error
    if not (torch.cuda.is_available() or triton_kernels.IS_INTERPRETED):
        raise _unusable("there is no CUDA device for Triton's kernels")
    return triton_kernels


def _unusable(why: str) -> MachineError:
    return MachineError(why, where="model.attention", hint="use model.attention=fast, which gives the same numbers")

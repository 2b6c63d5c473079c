"""Triton kernels that multiply with RoI tokens which are never written to memory.

P queries have N tokens of D channels each. A token is a weighted sum of cells of a `RoiTable`, and is made anew
wherever a kernel needs it. With X for a query's (N, D) tokens:

    score    S = V X^T       (h, D) -> (h, N)
    gather   G = A X         (h, N) -> (h, D)
    scatter  X += A^T V      (h, N), (h, D) -> added to the cells that X is made of

They are all that attention needs, forward and backward. A program of `score` and `scatter` has one query and one tile
of tokens, and goes through the channels; one of `gather` has one query and one tile of channels, and goes through the
tokens. In registers are a tile of tokens x channels and the four cells of a line that are being added to it; never a
whole token, nor all sixteen cells. For that loops over lines are not unrolled, and none is pipelined through shared
memory. Heads are padded to 16, the rows of a matrix unit.

The module is imported where Triton is installed only, and by nothing but `core.ops.triton_attention`.
"""
# What Triton knows when it compiles are arguments in capitals; mypy does not see through its decorator.
# ruff: noqa: N803, N806
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

IS_INTERPRETED = bool(triton.knobs.runtime.interpret)
"""TRITON_INTERPRET=1 was set when Triton was imported: kernels run on the CPU, step by step, without being compiled."""

_PRECISION = tl.constexpr("tf32x3")
"""Products of float32 on matrix units, by three products of fewer digits; about as exact as float32's own."""


@triton.jit
def score_tokens(
    vectors: tl.tensor,  # (P, NUM_HEADS, DIM)
    table: tl.tensor,  # (rows, DIM)
    rows: tl.tensor,  # (P, levels, 2, RESOLUTION, NUM_CELLS)
    weights: tl.tensor,  # likewise
    scores: tl.tensor,  # (P, NUM_HEADS, NUM_TOKENS), written
    NUM_HEADS: tl.constexpr,
    NUM_TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    RESOLUTION: tl.constexpr,
    NUM_CELLS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    """Write the scalar products of each query's vectors and tokens; grid (P, tiles of tokens)."""
    EXACT: tl.constexpr = scores.dtype.element_ty
    query = tl.program_id(0)
    heads = query * NUM_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    is_head = tl.arange(0, BLOCK_HEADS)[:, None] < NUM_HEADS
    tokens = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    total = tl.zeros((BLOCK_HEADS, BLOCK_TOKENS), EXACT)
    for first in tl.range(0, DIM, BLOCK_DIM, num_stages=1):
        channels = first + tl.arange(0, BLOCK_DIM)
        vector = tl.load(vectors + heads * DIM + channels, mask=is_head & (channels < DIM), other=0).to(EXACT)
        sampled = _sample(table, rows, weights, query, tokens, channels, NUM_TOKENS, DIM, RESOLUTION, NUM_CELLS, EXACT)
        total += tl.dot(vector, tl.trans(sampled), input_precision=_PRECISION, out_dtype=EXACT)
    tl.store(scores + heads * NUM_TOKENS + tokens, total, mask=is_head & (tokens < NUM_TOKENS))


@triton.jit
def gather_tokens(
    shares: tl.tensor,  # (P, NUM_HEADS, NUM_TOKENS)
    table: tl.tensor,  # (rows, DIM)
    rows: tl.tensor,  # (P, levels, 2, RESOLUTION, NUM_CELLS)
    weights: tl.tensor,  # likewise
    gathered: tl.tensor,  # (P, NUM_HEADS, DIM), written
    NUM_HEADS: tl.constexpr,
    NUM_TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    RESOLUTION: tl.constexpr,
    NUM_CELLS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    """Write the sums of each query's tokens, weighted head by head; grid (P, tiles of channels)."""
    EXACT: tl.constexpr = gathered.dtype.element_ty
    query = tl.program_id(0)
    heads = query * NUM_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    is_head = tl.arange(0, BLOCK_HEADS)[:, None] < NUM_HEADS
    channels = tl.program_id(1) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    total = tl.zeros((BLOCK_HEADS, BLOCK_DIM), EXACT)
    for first in tl.range(0, NUM_TOKENS, BLOCK_TOKENS, num_stages=1):
        tokens = first + tl.arange(0, BLOCK_TOKENS)
        share = tl.load(shares + heads * NUM_TOKENS + tokens, mask=is_head & (tokens < NUM_TOKENS), other=0).to(EXACT)
        sampled = _sample(table, rows, weights, query, tokens, channels, NUM_TOKENS, DIM, RESOLUTION, NUM_CELLS, EXACT)
        total += tl.dot(share, sampled, input_precision=_PRECISION, out_dtype=EXACT)
    tl.store(gathered + heads * DIM + channels, total, mask=is_head & (channels < DIM))


@triton.jit
def scatter_tokens(
    shares: tl.tensor,  # (P, NUM_HEADS, NUM_TOKENS)
    vectors: tl.tensor,  # (P, NUM_HEADS, DIM)
    table: tl.tensor,  # (rows, DIM), added to
    rows: tl.tensor,  # (P, levels, 2, RESOLUTION, NUM_CELLS)
    weights: tl.tensor,  # likewise
    NUM_HEADS: tl.constexpr,
    NUM_TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    RESOLUTION: tl.constexpr,
    NUM_CELLS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    """Add to each token the heads' vectors, weighted by their shares in it; grid (P, tiles of tokens)."""
    EXACT: tl.constexpr = table.dtype.element_ty
    query = tl.program_id(0)
    heads = query * NUM_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    is_head = tl.arange(0, BLOCK_HEADS)[:, None] < NUM_HEADS
    tokens = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    is_token = tokens < NUM_TOKENS
    share = tl.load(shares + heads * NUM_TOKENS + tokens, mask=is_head & is_token, other=0).to(EXACT)
    columns, lines = _find_bins(query, tokens, NUM_TOKENS, RESOLUTION, NUM_CELLS)
    for first in tl.range(0, DIM, BLOCK_DIM, num_stages=1):
        channels = first + tl.arange(0, BLOCK_DIM)
        is_channel = channels < DIM
        vector = tl.load(vectors + heads * DIM + channels, mask=is_head & is_channel, other=0).to(EXACT)
        change = tl.dot(tl.trans(share), vector, input_precision=_PRECISION, out_dtype=EXACT)
        for i in tl.range(NUM_CELLS, num_stages=1):
            line = tl.load(rows + lines + i, mask=is_token, other=0)
            line_weight = tl.load(weights + lines + i, mask=is_token, other=0)
            for j in tl.static_range(NUM_CELLS):
                row = line + tl.load(rows + columns + j, mask=is_token, other=0)
                weight = line_weight * tl.load(weights + columns + j, mask=is_token, other=0)
                cells = table + row.to(tl.int64)[:, None] * DIM + channels
                is_read = is_channel & (weight != 0)[:, None]
                tl.atomic_add(cells, weight[:, None] * change, mask=is_read, sem="relaxed")


@triton.jit
def _sample(
    table: tl.tensor,
    rows: tl.tensor,
    weights: tl.tensor,
    query: tl.tensor,
    tokens: tl.tensor,
    channels: tl.tensor,
    NUM_TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    RESOLUTION: tl.constexpr,
    NUM_CELLS: tl.constexpr,
    EXACT: tl.constexpr,
) -> tl.tensor:
    """Return a tile (tokens, channels) of a query's tokens, 0 where there is none."""
    is_token, is_channel = tokens < NUM_TOKENS, channels < DIM
    columns, lines = _find_bins(query, tokens, NUM_TOKENS, RESOLUTION, NUM_CELLS)
    sampled = tl.zeros((tokens.shape[0], channels.shape[0]), EXACT)
    for i in tl.range(NUM_CELLS, num_stages=1):
        line = tl.load(rows + lines + i, mask=is_token, other=0)
        line_weight = tl.load(weights + lines + i, mask=is_token, other=0)
        for j in tl.static_range(NUM_CELLS):
            row = line + tl.load(rows + columns + j, mask=is_token, other=0)
            weight = line_weight * tl.load(weights + columns + j, mask=is_token, other=0)
            is_read = is_channel & (weight != 0)[:, None]
            cells = tl.load(table + row.to(tl.int64)[:, None] * DIM + channels, mask=is_read, other=0)
            sampled += weight[:, None].to(EXACT) * cells.to(EXACT)
    return sampled


@triton.jit
def _find_bins(
    query: tl.tensor,
    tokens: tl.tensor,
    NUM_TOKENS: tl.constexpr,
    RESOLUTION: tl.constexpr,
    NUM_CELLS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return where in `RoiAxes` the columns and the lines of tokens begin."""
    bins_of_level: tl.constexpr = RESOLUTION * RESOLUTION
    level = query * (NUM_TOKENS // bins_of_level) + tokens // bins_of_level
    columns = 2 * level * RESOLUTION + tokens % RESOLUTION
    lines = (2 * level + 1) * RESOLUTION + tokens // RESOLUTION % RESOLUTION
    return columns * NUM_CELLS, lines * NUM_CELLS

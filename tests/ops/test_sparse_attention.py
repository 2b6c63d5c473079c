"""The sparse attention against its definition, written out query by query and head by head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from core.ops.roi_pool import pool_roi_tokens
from core.ops.sparse_attention import Affine, KeyValueProjection
from tests.ops.attention_problems import IMPLEMENTATIONS, SCALE, Problem, random_problem

RESOLUTION = 2
both_families = pytest.mark.parametrize("has_position_key", [False, True], ids=["detr", "conditional"])
all_implementations = pytest.mark.parametrize("build", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


def one_by_one(problem: Problem) -> Tensor:
    """Attend by torch's own attention, on concatenated keys."""
    tokens, positions = pool_roi_tokens(problem.pyramid, problem.boxes, RESOLUTION)
    projection, result = problem.projection, torch.empty_like(problem.content)
    num_images, num_queries, num_heads, dim = result.shape
    for image in range(num_images):
        for query in range(num_queries):
            x, p = tokens[image, query], positions[image, query]
            for head in range(num_heads):
                part = slice(head * dim, (head + 1) * dim)
                asked = problem.content[image, query, head]
                if projection.position_key is None or problem.position is None:
                    keys = projection.content_key(x + p)[:, part]
                else:
                    keys = torch.cat([projection.content_key(x)[:, part], projection.position_key(p)[:, part]], dim=-1)
                    asked = torch.cat([asked, problem.position[image, query, head]])
                values = projection.value(x)[:, part]
                attended = F.scaled_dot_product_attention(asked[None], keys, values, scale=SCALE)
                result[image, query, head] = attended[0]
    return result.flatten(2)


@both_families
@all_implementations
def test_equals_attention_one_by_one(build, has_position_key):
    problem = random_problem(has_position_key=has_position_key, num_queries=10)
    with torch.no_grad():
        attended, expected = problem.attend(build(RESOLUTION)), one_by_one(problem)
    assert attended.shape == (2, 10, 8)
    torch.testing.assert_close(attended, expected, rtol=0, atol=1e-9)


@all_implementations
def test_zero_tokens_take_their_share_of_the_softmax(build):
    """One of two columns of bins lies outside: with equal logits, it takes a half."""
    problem = random_problem(strides=(8,), image_hw=(64, 96), num_queries=1)
    ones = [torch.ones_like(level) for level in problem.features]
    no_key = Affine(torch.zeros(8, 8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64))
    value = Affine(torch.eye(8, dtype=torch.float64), no_key.bias)
    halves = Problem(
        content=problem.content,
        position=None,
        features=ones,
        positions=problem.positions,
        strides=problem.strides,
        boxes=torch.tensor([-40.0, 16, 40, 48], dtype=torch.float64).expand(2, 1, 4),
        projection=KeyValueProjection(no_key, value),
    )
    torch.testing.assert_close(halves.attend(build(2)), torch.full((2, 1, 8), 0.5, dtype=torch.float64))


@all_implementations
def test_dropout_drops_weights_and_keeps_the_mean(build):
    problem, attention = random_problem(num_queries=10), build(RESOLUTION)
    torch.manual_seed(0)
    with torch.no_grad():
        exact = problem.attend(attention)
        draws = torch.stack([problem.attend(attention, dropout=0.5) for _ in range(300)])
    assert draws.std(0).min() > 0
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() < 6 * standard_error).all()

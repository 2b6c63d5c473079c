from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from core.ops.roi_pool import FeaturePyramid, pool_roi_tokens
from core.ops.sparse_attention import Affine, KeyValueProjection, PlainSparseAttention

B, Q, H, D = 2, 3, 2, 8
RESOLUTION = 2


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def problem(generator: torch.Generator, num_queries: int = Q):
    """Return queries, pyramid, boxes and projections of two images with two levels."""
    sizes = ((6, 8), (3, 4))
    pyramid = FeaturePyramid(
        [random(generator, B, D, *size) for size in sizes], [random(generator, B, D, *size) for size in sizes], (8, 16)
    )
    low = 20 * random(generator, B, num_queries, 2)
    boxes = torch.cat([low, low + 5 + 20 * random(generator, B, num_queries, 2).abs()], dim=-1)
    content, position = (random(generator, B, num_queries, H, D // H) for _ in range(2))
    key, value, position_key = (Affine(random(generator, D, D), random(generator, D)) for _ in range(3))
    return content, position, pyramid, boxes, KeyValueProjection(key, value, position_key)


def one_by_one(content, position, pyramid, boxes, projection, scale: float) -> Tensor:
    """Attend query by query and head by head, by torch's own attention on concatenated keys."""
    tokens, positions = pool_roi_tokens(pyramid, boxes, RESOLUTION)
    result = torch.empty(B, boxes.shape[1], D, dtype=torch.float64)
    for image in range(B):
        for query in range(boxes.shape[1]):
            x, p = tokens[image, query], positions[image, query]
            for head in range(H):
                part = slice(head * D // H, (head + 1) * D // H)
                if projection.position_key is None:
                    keys, asked = projection.content_key(x + p)[:, part], content[image, query, head]
                else:
                    keys = torch.cat([projection.content_key(x)[:, part], projection.position_key(p)[:, part]], dim=-1)
                    asked = torch.cat([content[image, query, head], position[image, query, head]])
                values = projection.value(x)[:, part]
                result[image, query, part] = F.scaled_dot_product_attention(asked[None], keys, values, scale=scale)[0]
    return result


@pytest.mark.parametrize("has_position_key", [False, True])
def test_equals_attention_one_by_one(generator, has_position_key):
    content, position, pyramid, boxes, projection = problem(generator)
    if not has_position_key:
        position, projection = None, KeyValueProjection(projection.content_key, projection.value)
    attended = PlainSparseAttention(RESOLUTION)(content, position, pyramid, boxes, projection, scale=0.4)
    assert attended.shape == (B, Q, D)
    expected = one_by_one(content, position, pyramid, boxes, projection, 0.4)
    torch.testing.assert_close(attended, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("has_position_key", [False, True])
def test_gradients(generator, has_position_key):
    content, position, pyramid, boxes, projection = problem(generator)
    attention = PlainSparseAttention(RESOLUTION)

    def attend(content, position, fine, coarse, fine_position, weight, bias):
        levels = FeaturePyramid([fine, coarse], [fine_position, pyramid.positions[1]], pyramid.strides)
        key = Affine(weight, bias)
        if has_position_key:
            changed = KeyValueProjection(key, projection.value, projection.position_key)
            return attention(content, position, levels, boxes, changed, scale=0.3)
        return attention(content, None, levels, boxes, KeyValueProjection(key, projection.value), scale=0.3)

    inputs = (content, position, *pyramid.features, pyramid.positions[0], *projection.content_key)
    assert torch.autograd.gradcheck(attend, [tensor.clone().requires_grad_() for tensor in inputs], fast_mode=True)


def test_zero_tokens_take_their_share_of_the_softmax(generator):
    content, _, pyramid, _, projection = problem(generator)
    zero = torch.zeros(D, dtype=torch.float64)
    plain = KeyValueProjection(Affine(projection.content_key.weight, zero), Affine(projection.value.weight, zero))
    no_positions = FeaturePyramid(pyramid.features, [torch.zeros_like(x) for x in pyramid.positions], pyramid.strides)
    boxes = torch.tensor([-500.0, -500.0, -400.0, -400.0], dtype=torch.float64).expand(B, Q, 4)
    attended = PlainSparseAttention(RESOLUTION)(content, None, no_positions, boxes, plain, scale=1.0)
    assert attended.abs().max() == 0


def test_no_queries(generator):
    content, position, pyramid, boxes, projection = problem(generator, num_queries=0)
    attended = PlainSparseAttention(RESOLUTION)(content, position, pyramid, boxes, projection, scale=1.0)
    assert attended.shape == (B, 0, D)


def test_dropout_drops_weights_and_keeps_the_mean(generator):
    content, position, pyramid, boxes, projection = problem(generator)
    attention = PlainSparseAttention(RESOLUTION)
    exact = attention(content, position, pyramid, boxes, projection, scale=0.1)
    torch.manual_seed(0)
    draws = torch.stack(
        [attention(content, position, pyramid, boxes, projection, scale=0.1, dropout=0.5) for _ in range(300)]
    )
    assert draws.std(0).min() > 0
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() < 6 * standard_error).all()

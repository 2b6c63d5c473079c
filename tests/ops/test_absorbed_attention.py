"""The fast attention against the plain one, its oracle."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from core.ops.absorbed_attention import AbsorbedSparseAttention
from core.ops.roi_pool import FeaturePyramid
from core.ops.sparse_attention import Affine, KeyValueProjection, PlainSparseAttention, SparseAttention
from tests.ops.test_roi_table import STRIDES, varied_boxes

B, Q, H, D = 2, 40, 2, 8
SIZES = {8: (8, 12), 16: (4, 6), 32: (2, 3), 64: (1, 2)}


@dataclass
class Problem:
    """Random arguments of an attention; a family is told by its position keys."""

    num_levels: int = 3
    has_position_key: bool = False
    num_queries: int = Q
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)

        def random(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return values.to(self.dtype).requires_grad_()

        def levels() -> list[Tensor]:
            return [random(B, D, *SIZES[stride]) for stride in STRIDES[self.num_levels]]

        def affine() -> Affine:
            return Affine(random(D, D), random(D))

        boxes = varied_boxes(torch.promote_types(self.dtype, torch.float32))
        self.boxes = boxes[:, :: boxes.shape[1] // Q][:, : self.num_queries]
        self.content, self.position = (random(B, self.num_queries, H, D // H) for _ in range(2))
        self.features, self.positions = levels(), levels()
        self.key, self.value, self.position_key = affine(), affine(), affine()

    def attend(self, attention: SparseAttention, dropout: float = 0.0) -> Tensor:
        pyramid = FeaturePyramid(self.features, self.positions, STRIDES[self.num_levels])
        position = self.position if self.has_position_key else None
        projection = KeyValueProjection(self.key, self.value, self.position_key if self.has_position_key else None)
        torch.manual_seed(11)
        return attention(self.content, position, pyramid, self.boxes, projection, scale=0.4, dropout=dropout)

    @property
    def inputs(self) -> list[Tensor]:
        own = [self.position, *self.position_key] if self.has_position_key else []
        return [self.content, *self.features, *self.positions, *self.key, *self.value, *own]

    def gradients(self, attended: Tensor) -> tuple[Tensor, ...]:
        share = torch.linspace(-1, 1, attended.numel(), dtype=attended.dtype).view_as(attended)
        return torch.autograd.grad((attended * share).sum(), self.inputs)


def require_equal(problem: Problem, resolution: int, dropout: float = 0.0) -> None:
    ours = problem.attend(AbsorbedSparseAttention(resolution), dropout)
    expected = problem.attend(PlainSparseAttention(resolution), dropout)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(problem.gradients(ours), problem.gradients(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("has_position_key", [False, True])
@pytest.mark.parametrize("num_levels", STRIDES)
@pytest.mark.parametrize("resolution", [1, 2, 4, 7])
def test_equals_the_plain_attention(resolution, num_levels, has_position_key):
    require_equal(Problem(num_levels, has_position_key), resolution)


@pytest.mark.parametrize("has_position_key", [False, True])
def test_equals_the_plain_attention_where_weights_are_dropped(has_position_key):
    """The same seed drops the same weights."""
    problem = Problem(has_position_key=has_position_key)
    require_equal(problem, resolution=2, dropout=0.5)
    whole, dropped = (problem.attend(AbsorbedSparseAttention(2), dropout) for dropout in (0.0, 0.5))
    assert (whole - dropped).abs().max() > 0.1


@pytest.mark.parametrize("has_position_key", [False, True])
def test_key_biases_get_a_gradient_of_exactly_zero(has_position_key):
    problem = Problem(has_position_key=has_position_key)
    problem.attend(AbsorbedSparseAttention(4)).sum().backward()
    biases = [problem.key.bias, problem.position_key.bias] if has_position_key else [problem.key.bias]
    for bias in biases:
        assert bias.grad is not None
        assert bias.grad.count_nonzero() == 0


def test_boxes_that_are_not_finite():
    problem = Problem()
    problem.boxes[0, 3, 2] = float("nan")
    problem.boxes[1, 5] = torch.tensor([-float("inf"), 0, float("inf"), 20])
    require_equal(problem, 4)


def test_no_queries():
    problem = Problem(num_queries=0)
    attended = problem.attend(AbsorbedSparseAttention(4))
    assert attended.shape == (B, 0, D)
    assert all(gradient.count_nonzero() == 0 for gradient in problem.gradients(attended))


@pytest.mark.parametrize("has_position_key", [False, True])
def test_single_precision(has_position_key):
    exact = Problem(has_position_key=has_position_key)
    single = Problem(has_position_key=has_position_key, dtype=torch.float32)
    exact.boxes = single.boxes.double()
    ours, expected = single.attend(AbsorbedSparseAttention(4)), exact.attend(PlainSparseAttention(4))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "all of it"])
@pytest.mark.parametrize("has_position_key", [False, True])
def test_half_precision_is_as_good_as_the_plain_attention(has_position_key, autocast):
    exact = Problem(has_position_key=has_position_key)
    half = Problem(has_position_key=has_position_key, dtype=torch.float32 if autocast else torch.bfloat16)
    exact.boxes = half.boxes.double()
    expected = exact.attend(PlainSparseAttention(4))
    errors = []
    for attention in (AbsorbedSparseAttention(4), PlainSparseAttention(4)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            attended = half.attend(attention)
        assert attended.dtype == torch.bfloat16
        assert all(gradient.isfinite().all() for gradient in half.gradients(attended))
        errors.append((attended.double() - expected).square().mean().sqrt().item())
    assert errors[0] < 1.5 * errors[1]

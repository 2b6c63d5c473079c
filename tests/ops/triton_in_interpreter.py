"""The Triton attention against the plain one, its oracle; `test_triton_attention.py` runs this with TRITON_INTERPRET=1.

The interpreter takes milliseconds for what is one instruction of a GPU, hence the few queries.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.ops.roi_table import RoiTable
from core.ops.sparse_attention import PlainSparseAttention
from core.ops.triton_attention import TritonSparseAttention, attend_rois
from tests.models.test_detector import random_batch, small_detector
from tests.ops.attention_problems import STRIDES, Problem, random_problem, require_equal


def require_equal_to_plain(problem: Problem, resolution: int, dropout: float = 0.0, atol: float = 1e-9) -> None:
    ours = problem.answer(TritonSparseAttention(resolution), dropout)
    require_equal(ours, problem.answer(PlainSparseAttention(resolution), dropout), atol)


@pytest.mark.parametrize(
    ("resolution", "shape"),
    [
        (4, {"num_queries": 1}),
        (4, {"num_queries": 1, "num_images": 1, "has_position_key": True}),
        (1, {"num_queries": 1, "strides": STRIDES[1]}),
        (1, {"num_queries": 2, "num_images": 1, "strides": STRIDES[4], "has_position_key": True}),
        (7, {"num_queries": 1, "num_images": 1, "strides": STRIDES[1], "has_position_key": True}),
        # More channels than a tile has, and more heads than are rows of a matrix unit.
        (2, {"num_queries": 1, "num_images": 1, "strides": STRIDES[1], "dim": 72, "num_heads": 18}),
    ],
    ids=str,
)
def test_equals_the_plain_attention(resolution, shape):
    require_equal_to_plain(random_problem(**shape), resolution)


def test_boxes_of_all_kinds():
    """Inside, across the rim, huge, without area, turned around, far outside, not finite."""
    require_equal_to_plain(random_problem(num_images=1, num_queries=10), 2)


def test_single_precision():
    problem = random_problem(num_images=1, num_queries=3, has_position_key=True).to(torch.float32)
    require_equal_to_plain(problem, 2, atol=1e-5)


@pytest.mark.parametrize("has_position_key", [False, True], ids=["detr", "conditional"])
def test_the_same_seed_drops_the_same_weights(has_position_key):
    problem = random_problem(num_images=1, num_queries=2, has_position_key=has_position_key)
    require_equal_to_plain(problem, 2, dropout=0.5)
    whole, dropped = (problem.answer(PlainSparseAttention(2), dropout)["attended"] for dropout in (0.0, 0.5))
    assert (whole - dropped).abs().max() > 0.1


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "all of it"])
def test_half_precision_is_as_good_as_the_plain_attention(autocast):
    half = random_problem(num_images=1, num_queries=2).to(torch.float32 if autocast else torch.bfloat16)
    expected = half.to(torch.float64).attend(PlainSparseAttention(2))
    errors = []
    for attention in (TritonSparseAttention(2), PlainSparseAttention(2)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            answer = half.answer(attention)
        assert answer["attended"].dtype == torch.bfloat16
        assert all(each.isfinite().all() for each in answer.values())
        errors.append((answer["attended"].double() - expected).square().mean().sqrt().item())
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_of_half_precision_are_read_as_they_are(dtype):
    problem = random_problem(num_images=1, num_queries=1, strides=STRIDES[1])
    boxes = torch.tensor([[[8.0, 8.0, 70.0, 50.0]]])
    rounded = problem.to(dtype)

    def attend(levels: Problem) -> tuple[Tensor, ...]:
        table = RoiTable.build(levels.features, levels.positions, levels.strides)
        axes = table.find_axes(boxes, 2, 2)
        features, positions = (
            rows.detach().to(levels.content.dtype).requires_grad_() for rows in (table.features, table.positions)
        )
        query = levels.content.detach().flatten(0, 1).repeat(1, 1, 2).requires_grad_()
        gathered, sums = attend_rois(query, query, features, positions, axes)
        inputs = [query, features, positions]
        return gathered, sums, *torch.autograd.grad(gathered.sum() + 2 * sums.sum(), inputs)

    ours, exact = attend(rounded), attend(rounded.to(torch.float32))
    for half, single in zip(ours, exact, strict=True):
        assert half.dtype == (torch.float32 if single is exact[1] else dtype)
        torch.testing.assert_close(half.float(), single, rtol=0.02, atol=0.02)


def test_only_what_is_asked_for_gets_a_gradient():
    problem = random_problem(num_images=1, num_queries=2, has_position_key=True)
    frozen = replace(
        problem,
        content=problem.content.detach(),
        features=[level.detach() for level in problem.features],
        positions=[level.detach() for level in problem.positions],
    )
    require_equal_to_plain(frozen, 2)


def test_no_queries():
    problem = random_problem(num_queries=0)
    answer = problem.answer(TritonSparseAttention(4))
    assert answer.pop("attended").shape == (2, 0, 8)
    assert all(gradient.count_nonzero() == 0 for gradient in answer.values())


def test_compiled_models_step_around_it():
    problem = random_problem(num_images=1, num_queries=1, strides=STRIDES[1])
    attention = TritonSparseAttention(2)
    ours = problem.answer(torch.compile(attention, backend="eager"))
    require_equal(ours, problem.answer(PlainSparseAttention(2)))


@pytest.mark.parametrize("name", ["de-detr", "de-conddetr"])
def test_a_detector_answers_as_with_the_fast_attention(name):
    batch, answers = random_batch((64, 96)), []
    for attention in ("triton", "fast"):
        detector = small_detector(name, num_queries=2, num_decoder_layers=2, roi_resolution=2, attention=attention)
        with torch.no_grad():
            answers.append(detector.eval()(batch))
    torch.testing.assert_close(answers[0].logits, answers[1].logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(answers[0].boxes_cxcywh_norm, answers[1].boxes_cxcywh_norm, rtol=0, atol=1e-5)

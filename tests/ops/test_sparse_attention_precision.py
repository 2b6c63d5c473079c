"""The sparse attention in float32 and half precision: errors no worse than the plain one's, whose float64 is exact."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.ops.attention_problems import IMPLEMENTATIONS, Problem, random_problem, require_equal

fast, plain = IMPLEMENTATIONS["fast"], IMPLEMENTATIONS["plain"]
IMAGE_HW = (333, 500)
"""So large that boxes in half precision would be cells off."""
both_families = pytest.mark.parametrize("has_position_key", [False, True], ids=["detr", "conditional"])
all_implementations = pytest.mark.parametrize("build", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
half_precisions = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def large_problem(dtype: torch.dtype, has_position_key: bool = False, seed: int = 0) -> Problem:
    problem = random_problem(
        has_position_key=has_position_key, image_hw=IMAGE_HW, num_queries=60, dim=32, num_heads=4, seed=seed
    )
    return problem.to(dtype)


def square_errors(problem: Problem, expected: dict[str, Tensor], name: str, autocast: torch.dtype | None) -> Tensor:
    """Return an implementation's mean squared error in each tensor of its answer."""
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        answer = problem.answer(IMPLEMENTATIONS[name](4))
    for key, tensor in answer.items():
        assert tensor.isfinite().all(), key
        is_result_of_autocast = key == "attended" and autocast is not None
        assert tensor.dtype == (autocast if is_result_of_autocast else problem.content.dtype), key
    return torch.stack([(answer[key].double() - exact).square().mean() for key, exact in expected.items()])


@both_families
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.float16, None),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
    ids=str,
)
def test_fast_errs_no_more_than_plain(dtype, autocast, has_position_key):
    totals: dict[str, Tensor | float] = defaultdict(float)
    for seed in range(3):
        problem = large_problem(dtype, has_position_key, seed)
        expected = problem.to(torch.float64).answer(plain(4))
        # Key biases have no influence: of their gradient the plain attention has nothing but rounding errors.
        expected = {key: exact for key, exact in expected.items() if not key.endswith("key.bias")}
        for name in IMPLEMENTATIONS:
            totals[name] = totals[name] + square_errors(problem, expected, name, autocast)
    ratios = (totals["fast"] / totals["plain"]).sqrt()
    assert dict(zip(expected, ratios.tolist(), strict=True)) == pytest.approx(dict.fromkeys(expected, 0), abs=1.5)


@both_families
def test_single_precision_is_single_precision(has_position_key):
    problem = large_problem(torch.float32, has_position_key)
    ours, single, exact = problem.answer(fast(4)), problem.answer(plain(4)), problem.to(torch.float64).answer(plain(4))
    # A sampling point may be on the other side of a map's rim than in double precision, but not than in the plain one.
    require_equal(ours, single, atol=2e-5 * max(each.abs().max().item() for each in exact.values()))
    error = (ours["attended"].double() - exact["attended"]).square().mean().sqrt()
    assert error < 1e-5 * exact["attended"].square().mean().sqrt()


@pytest.mark.parametrize("resolution", [3, 4, 7])
def test_points_on_the_rim_are_in_or_out_as_for_plain(resolution):
    """Boxes with a sampling point where a map ends: the last bit of its coordinate decides."""
    generator = torch.Generator().manual_seed(0)
    num_points = 2 * resolution
    share = (torch.randint(num_points, (1, 600, 2), generator=generator) + 0.5) / num_points
    # One cell outside the centres of the first and of the last cell, in pixels.
    rim = torch.tensor([[-4.0, -4.0], [100.0, 68.0]])[torch.randint(2, (1, 600), generator=generator)]
    low = rim - 90 * torch.rand(1, 600, 2, generator=generator)
    boxes = torch.cat([low, low + (rim - low) / share], dim=-1)
    problem = replace(random_problem(strides=(8,), image_hw=(64, 96), num_images=1, num_queries=600), boxes=boxes).to(
        torch.float32
    )
    single = problem.answer(plain(resolution))
    require_equal(problem.answer(fast(resolution)), single, atol=1e-4)
    exact = problem.to(torch.float64).attend(plain(resolution))
    assert ((single["attended"].double() - exact).abs().amax(-1) > 1e-3).sum() > 100


@half_precisions
@both_families
@all_implementations
def test_boxes_keep_their_precision(build, has_position_key, dtype):
    """Half precision of all the rest moves nothing by a pixel."""
    problem = large_problem(dtype, has_position_key)
    answer = problem.attend(build(4)).double()
    rounded = replace(problem, boxes=problem.boxes.to(dtype)).attend(build(4)).double()
    exact = problem.to(torch.float64).attend(plain(4))
    error, error_of_rounded = ((each - exact).square().mean().sqrt() for each in (answer, rounded))
    assert error < 0.02
    assert error_of_rounded > 3 * error


@half_precisions
@both_families
@all_implementations
def test_maps_of_different_precision_as_autocast_leaves_them(build, has_position_key, dtype):
    """The backbone's levels are half precision, the encoder's output is not, nor are its positions."""
    problem = large_problem(torch.float32, has_position_key)
    features = [level.detach().to(dtype).requires_grad_() for level in problem.features[:-1]]
    mixed = replace(problem, features=[*features, problem.features[-1]])
    with torch.autocast("cpu", dtype=dtype):
        answer = mixed.answer(build(4))
    assert answer["attended"].dtype == dtype
    exact = problem.to(torch.float64).answer(plain(4))
    for key, tensor in answer.items():
        assert tensor.dtype == (dtype if key == "attended" else mixed.inputs[key].dtype)
        assert tensor.isfinite().all()
        error = (tensor.double() - exact[key]).square().mean().sqrt()
        assert error < 0.03 * exact[key].square().mean().sqrt() + 0.03, key

"""Laws of the sparse attention that need no oracle; hypothesis looks for a counterexample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.ops.sparse_attention import SparseAttention
from tests.ops.attention_problems import IMPLEMENTATIONS, Problem, random_problem, require_equal

all_implementations = pytest.mark.parametrize("build", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
few_examples = settings(max_examples=25, deadline=None)
resolutions = st.integers(1, 5)
coordinates = st.one_of(st.floats(-300, 300, width=32), st.integers(-40, 40).map(lambda cell: 4.0 * cell))


@st.composite
def problems(draw: st.DrawFn, **fixed: tuple[int, ...]) -> Problem:
    """Problems of all shapes, some of whose boxes hypothesis draws."""
    dim_of_head, num_heads = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = {
        "num_images": draw(st.integers(1, 3)),
        "num_queries": draw(st.integers(1, 12)),
        "num_heads": num_heads,
        "dim": dim_of_head * num_heads,
        "image_hw": draw(st.tuples(st.integers(1, 70), st.integers(1, 70))),
        "strides": tuple(draw(st.lists(st.sampled_from([4, 8, 16, 32, 64]), min_size=1, max_size=4))),
    }
    problem = random_problem(has_position_key=draw(st.booleans()), seed=draw(st.integers(0, 999)), **shape | fixed)
    count = problem.boxes.shape[0] * problem.boxes.shape[1]
    drawn = st.dictionaries(st.integers(0, count - 1), st.tuples(*[coordinates] * 4), max_size=6)
    for index, box in draw(drawn).items():
        problem.boxes.view(-1, 4)[index] = torch.tensor(box, dtype=torch.float64)
    return problem


def attend(problem: Problem, attention: SparseAttention) -> Tensor:
    with torch.no_grad():
        return problem.attend(attention)


def require_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@few_examples
@given(problem=problems(), resolution=resolutions)
def test_fast_equals_plain(problem, resolution):
    require_equal(*(problem.answer(build(resolution)) for build in IMPLEMENTATIONS.values()))


@all_implementations
@few_examples
@given(problem=problems(), resolution=resolutions, data=st.data())
def test_queries_do_not_see_each_other(build, problem, resolution, data):
    """Some of the queries, in another order and some of them twice, get what they got among all."""
    num_queries = problem.boxes.shape[1]
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, num_queries - 1), min_size=1, max_size=15)))
    expected = attend(problem, build(resolution))[:, chosen]
    require_close(attend(problem.select(slice(None), chosen), build(resolution)), expected)


@all_implementations
@few_examples
@given(problem=problems(), resolution=resolutions, data=st.data())
def test_images_do_not_see_each_other(build, problem, resolution, data):
    """Some of the images, in another order and some of them twice, get what they got among all."""
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, len(problem.boxes) - 1), min_size=1, max_size=4)))
    expected = attend(problem, build(resolution))[chosen]
    require_close(attend(problem.select(chosen, slice(None)), build(resolution)), expected)


@all_implementations
@few_examples
@given(problem=problems(), resolution=resolutions, data=st.data())
def test_a_query_depends_on_no_box_but_its_own(build, problem, resolution, data):
    query = data.draw(st.integers(0, problem.boxes.shape[1] - 1))
    moved = torch.roll(problem.boxes, 1, dims=1) * 0.7 + 3
    moved[:, query] = problem.boxes[:, query]
    before, after = (attend(replace(problem, boxes=boxes), build(resolution)) for boxes in (problem.boxes, moved))
    require_close(after[:, query], before[:, query])


@all_implementations
@few_examples
@given(problem=problems(image_hw=(64, 96), strides=(8, 16, 32)), resolution=resolutions, feature=st.floats(-9, 9))
def test_a_feature_everywhere_is_found_as_far_as_the_box_is_inside(build, problem, resolution, feature):
    """The result is the feature's value for boxes inside, the value of zero for boxes outside, else between them."""
    whole = replace(problem, features=[torch.full_like(level, feature) for level in problem.features])
    inside = problem.boxes.nan_to_num(0.0, 0.0, 0.0).clamp(min=0, max=64)
    of_feature = problem.projection.value(torch.full_like(problem.features[0][0, :, 0, 0], feature)).detach()
    of_zero = problem.projection.value.bias.detach()
    for boxes, expected in ((inside, of_feature), (inside + 5000, of_zero), (inside - 5000, of_zero)):
        require_close(attend(replace(whole, boxes=boxes), build(resolution)), expected.expand(*boxes.shape[:2], -1))
    found = attend(whole, build(resolution))
    assert (found >= torch.minimum(of_feature, of_zero) - 1e-9).all()
    assert (found <= torch.maximum(of_feature, of_zero) + 1e-9).all()


@all_implementations
@few_examples
@given(problem=problems(image_hw=(64, 128)), resolution=resolutions)
def test_mirrored_images_with_mirrored_boxes_give_the_same(build, problem, resolution):
    """There is no left and right, and no order of tokens."""
    # Off the rims, where the last bit of a coordinate decides.
    boxes = problem.boxes.nan_to_num(0.0, 0.0, 0.0) + 1e-3
    x0, y0, x1, y1 = boxes.unbind(-1)
    mirrored = replace(
        problem,
        features=[level.flip(-1) for level in problem.features],
        positions=[level.flip(-1) for level in problem.positions],
        boxes=torch.stack([128 - x1, y0, 128 - x0, y1], dim=-1),
    )
    require_close(attend(mirrored, build(resolution)), attend(replace(problem, boxes=boxes), build(resolution)))

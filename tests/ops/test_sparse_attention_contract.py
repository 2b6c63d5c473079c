"""What `SparseAttention` promises, of every implementation: shapes, numbers, gradients, memory.

Equal numbers mean: in float64 to 1e-9, forward and backward, the plain attention being the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.ops.sparse_attention import SparseAttention
from tests.ops.attention_problems import IMPLEMENTATIONS, STRIDES, Problem, random_problem, require_equal

fast, plain = IMPLEMENTATIONS["fast"], IMPLEMENTATIONS["plain"]
both_families = pytest.mark.parametrize("has_position_key", [False, True], ids=["detr", "conditional"])
all_implementations = pytest.mark.parametrize("build", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


@pytest.fixture
def num_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def require_equal_to_plain(problem: Problem, resolution: int, dropout: float = 0.0) -> None:
    require_equal(problem.answer(fast(resolution), dropout), problem.answer(plain(resolution), dropout))


@both_families
@pytest.mark.parametrize("num_levels", STRIDES)
@pytest.mark.parametrize("resolution", [1, 2, 3, 4, 5, 6, 7, 9, 14])
def test_fast_equals_plain(resolution, num_levels, has_position_key):
    require_equal_to_plain(random_problem(has_position_key=has_position_key, strides=STRIDES[num_levels]), resolution)


@both_families
@pytest.mark.parametrize(
    "shape",
    [
        {"num_images": 1},
        {"num_images": 3},
        {"num_queries": 1},
        {"num_queries": 200},
        {"num_heads": 1},
        {"num_heads": 8},
        {"dim": 6, "num_heads": 3},
        {"dim": 35, "num_heads": 5},
        {"dim": 1, "num_heads": 1},
        {"strides": (8, 16, 16)},
        {"strides": (16, 4)},
        {"image_hw": (33, 5)},
        {"image_hw": (1, 1)},
        {"image_hw": (20, 301)},
    ],
    ids=str,
)
def test_fast_equals_plain_whatever_the_shape(shape, has_position_key):
    require_equal_to_plain(random_problem(has_position_key=has_position_key, **shape), resolution=4)


@both_families
def test_fast_equals_plain_where_weights_are_dropped(has_position_key):
    """The same seed drops the same weights."""
    problem = random_problem(has_position_key=has_position_key)
    require_equal_to_plain(problem, resolution=2, dropout=0.5)


def channels_last(level: Tensor) -> Tensor:
    return level.contiguous(memory_format=torch.channels_last)


def within_a_larger_tensor(tensor: Tensor) -> Tensor:
    larger = torch.full([side + 2 for side in tensor.shape], float("nan"), dtype=tensor.dtype)
    inner = larger[tuple(slice(1, -1) for _ in tensor.shape)]
    return inner.copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


@both_families
@pytest.mark.parametrize("lay_out", [channels_last, within_a_larger_tensor, transposed])
@all_implementations
def test_memory_layout_does_not_matter(build, lay_out, has_position_key):
    problem = random_problem(has_position_key=has_position_key, strides=STRIDES[4])
    expected = problem.answer(build(3))
    four_dimensional = lay_out is channels_last
    moved = problem.change(lambda tensor: lay_out(tensor) if tensor.dim() == 4 or not four_dimensional else tensor)
    moved = replace(moved, boxes=moved.boxes if four_dimensional else lay_out(moved.boxes))
    assert not all(each.is_contiguous() for each in moved.features)
    require_equal(moved.answer(build(3)), expected)


@both_families
def test_positions_shared_by_all_images_as_learned_ones_are(has_position_key):
    problem = random_problem(has_position_key=has_position_key, num_images=3)
    learned = [level[:1].detach().requires_grad_() for level in problem.positions]
    shared = replace(problem, positions=[level.expand(3, -1, -1, -1) for level in learned])
    gradients = []
    for build in (fast, plain):
        attended = shared.attend(build(4))
        gradients.append(torch.autograd.grad(attended.square().sum(), learned))
        assert all(gradient.abs().max() > 0.01 for gradient in gradients[-1])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)


@both_families
@pytest.mark.parametrize("frozen", ["features", "positions", "content", "value", "all but the boxes"])
def test_what_requires_no_gradient_changes_nothing_for_the_rest(frozen, has_position_key):
    problem = random_problem(has_position_key=has_position_key)
    expected = problem.answer(plain(4))
    for name, tensor in problem.inputs.items():
        if frozen == "all but the boxes" or name.startswith(frozen):
            tensor.requires_grad_(False)
            del expected[name]
    problem.boxes.nan_to_num_(0.0, 0.0, 0.0).requires_grad_()
    if frozen != "all but the boxes":
        require_equal(problem.answer(fast(4)), expected)
        assert problem.boxes.grad is None
    else:
        for build in (fast, plain):
            assert not problem.attend(build(4)).requires_grad


@both_families
@all_implementations
def test_gradients_are_those_of_the_function(build, has_position_key):
    """By finite differences, in the direction of every input."""
    problem = random_problem(has_position_key=has_position_key, num_queries=4, dim=4, strides=(16, 32))
    names, values = zip(*problem.inputs.items(), strict=True)

    def attend(*tensors: Tensor) -> Tensor:
        return problem.with_inputs(dict(zip(names, tensors, strict=True))).attend(build(2))

    assert torch.autograd.gradcheck(attend, values, fast_mode=True)


@both_families
@all_implementations
def test_key_biases_get_a_gradient_although_they_have_no_influence(build, has_position_key):
    """Distributed training and weight decay ask every parameter for one."""
    problem = random_problem(has_position_key=has_position_key)
    answer = problem.answer(build(4))
    for name in ("content_key.bias", "position_key.bias")[: 1 + has_position_key]:
        assert answer[name].abs().max() < 1e-12
    shifted = problem.with_inputs(
        {name: each + 3 if name.endswith("key.bias") else each for name, each in problem.inputs.items()}
    )
    torch.testing.assert_close(shifted.attend(build(4)).detach(), answer["attended"], rtol=0, atol=1e-9)


@both_families
@pytest.mark.parametrize("shape", [(2, 0), (0, 5), (0, 0)], ids=["no queries", "no images", "neither"])
@all_implementations
def test_nothing_to_attend(build, shape, has_position_key):
    num_images, num_queries = shape
    problem = random_problem(has_position_key=has_position_key, num_images=num_images, num_queries=num_queries)
    answer = problem.answer(build(4))
    assert answer.pop("attended").shape == (num_images, num_queries, 8)
    assert all(gradient.count_nonzero() == 0 for gradient in answer.values())


@all_implementations
def test_a_dropped_weight_is_gone_and_the_others_grow(build):
    """With a single token each head keeps twice its value, or nothing; its bias is no exception."""
    problem = random_problem(strides=STRIDES[1], num_queries=200)
    whole = problem.attend(build(1)).view(2, 200, 2, 4)
    torch.manual_seed(0)
    dropped = problem.attend(build(1), dropout=0.5).view(2, 200, 2, 4)
    is_gone = (dropped == 0).all(-1)
    torch.testing.assert_close(dropped[~is_gone], 2 * whole[~is_gone], rtol=0, atol=1e-12)
    assert 0.4 < is_gone.double().mean() < 0.6
    assert not torch.equal(is_gone[..., 0], is_gone[..., 1])


@both_families
@all_implementations
def test_decoder_layers_share_a_pyramid(build, has_position_key):
    """Whoever came first, and however often gradients are asked for."""
    problem = random_problem(has_position_key=has_position_key)
    attention, pyramid = build(3), problem.pyramid
    other = replace(problem, boxes=problem.boxes.flip(1))
    together = sum(each.attend(attention, pyramid).square().sum() for each in (problem, other))
    inputs = list(problem.inputs.values())
    found = torch.autograd.grad(together, inputs)
    apart = [torch.autograd.grad(each.attend(attention).square().sum(), inputs) for each in (problem, other)]
    pairs = zip(*apart, strict=True)
    torch.testing.assert_close(found, tuple(first + second for first, second in pairs), rtol=0, atol=1e-9)
    for each, expected in zip((problem, other), apart, strict=True):
        one_by_one = torch.autograd.grad(each.attend(attention, pyramid).square().sum(), inputs)
        torch.testing.assert_close(one_by_one, expected, rtol=0, atol=1e-9)


@all_implementations
def test_a_pyramid_first_seen_without_gradients_has_them_afterwards(build):
    """As where memory is saved by working a layer out twice."""
    problem = random_problem().change(lambda tensor: transposed(tensor) if tensor.dim() == 4 else tensor)
    pyramid, attention = problem.pyramid, build(4)
    with torch.no_grad():
        problem.attend(attention, pyramid)
    gradients = torch.autograd.grad(problem.attend(attention, pyramid).sum(), problem.features, allow_unused=True)
    assert all(gradient is not None for gradient in gradients)


@both_families
@pytest.mark.parametrize("threads", [1, 2])
@all_implementations
def test_the_same_question_has_the_same_answer_to_the_last_bit(build, threads, num_threads, has_position_key):
    num_threads(threads)
    problem = random_problem(has_position_key=has_position_key, num_queries=300, dim=32).to(torch.float32)
    first, second = (problem.answer(build(4)) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def bytes_kept_for_backward(problem: Problem, attention: SparseAttention) -> int:
    """Return the size of all storages that the graph holds, but for the problem's own."""
    own = {each.untyped_storage().data_ptr() for each in problem.inputs.values()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attended = problem.attend(attention)
    assert attended.requires_grad
    return sum(each.untyped_storage().nbytes() for address, each in kept.items() if address not in own)


@both_families
def test_fast_keeps_a_fifth_of_what_plain_keeps_for_the_backward_pass(has_position_key):
    problem = random_problem(has_position_key=has_position_key, num_queries=100, dim=256, num_heads=8)
    problem = problem.to(torch.float32)
    kept, expected = (bytes_kept_for_backward(problem, build(4)) for build in (fast, plain))
    assert kept < expected / 5

from __future__ import annotations

import pytest
import torch

from core.ops.dropout import draw_kept, drop, keep_probability, relu_and_drop


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.9])
def test_that_share_is_dropped_and_the_rest_scaled_up(dropout):
    torch.manual_seed(0)
    values = torch.full((1000, 301), 2.0)
    after = drop(values, dropout)
    is_zero = after == 0
    assert is_zero.double().mean().item() == pytest.approx(dropout, abs=0.003)
    torch.testing.assert_close(after[~is_zero], torch.full_like(after[~is_zero], 2 / (1 - dropout)), rtol=1e-4, atol=0)
    assert torch.equal(values, torch.full_like(values, 2.0))


def test_neighbours_that_share_a_draw_are_independent():
    torch.manual_seed(0)
    kept = draw_kept((50000, 4), 0.5, torch.device("cpu")).double()
    correlation = torch.corrcoef(kept.T)
    assert (correlation - torch.eye(4)).abs().max() < 0.02


def test_it_follows_pytorchs_seed():
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(draw_kept((7, 11), 0.4, torch.device("cpu")))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_gradients_pass_where_values_are_kept():
    torch.manual_seed(0)
    values = torch.randn(100, requires_grad=True)
    after = drop(values, 0.25)
    after.sum().backward()
    torch.testing.assert_close(values.grad, (after != 0).float() / keep_probability(0.25))


def test_the_largest_dropout_still_keeps_something():
    torch.manual_seed(0)
    assert keep_probability(0.9999999) == 2**-16
    assert drop(torch.ones(1000), 0.9999999).isfinite().all()


def test_odd_and_empty_shapes():
    for shape in ((0, 3), (), (1,), (5, 1, 3)):
        assert draw_kept(shape, 0.5, torch.device("cpu")).shape == torch.Size(shape)


def test_relu_and_drop_is_both():
    values = torch.randn(30, 40, dtype=torch.float64, requires_grad=True)
    answers = []
    for function in (relu_and_drop, lambda values, dropout: drop(values.relu(), dropout)):
        torch.manual_seed(3)
        after = function(values, 0.3)
        share = torch.linspace(-1, 1, after.numel(), dtype=after.dtype).view_as(after)
        answers.append((after, *torch.autograd.grad((after * share).sum(), values)))
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-15)
    assert 0 < (answers[0][0] == 0).double().mean() < 1


def test_relu_and_drop_keeps_its_result_alone():
    values = torch.randn(30, 40, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        after = relu_and_drop(values, 0.3)
    assert len(kept) == 1
    assert kept[0].data_ptr() == after.data_ptr()
    assert torch.equal(relu_and_drop(values, 0.0), values.relu())

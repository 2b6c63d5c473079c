from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import core.ops.attention
from core.ops.attention import attend
from core.ops.dropout import draw_kept, keep_probability

B, H, Q, N, DK, DV = 2, 3, 5, 7, 4, 6
PADDING = torch.arange(N).expand(B, -1) >= torch.tensor([[N], [4]])


def heads(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return query, key and value as they come from a projection: heads lie beside each other."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, Q, H, DK), (B, N, H, DK), (B, N, H, DV))
    tensors = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return [tensor.transpose(1, 2).requires_grad_() for tensor in tensors]


def expected(query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None, dropout: float) -> Tensor:
    """The formula, with the weights that the present seed drops."""
    logits = query @ key.transpose(-1, -2) / DK**0.5
    if padding_mask is not None:
        logits = logits.masked_fill(padding_mask[:, None, None], -torch.inf)
    kept = draw_kept((B * H, Q, N), dropout, query.device).view(B, H, Q, N)
    return logits.softmax(-1) * kept / keep_probability(dropout) @ value


@pytest.mark.parametrize("chunk", [1, 2 * Q * N, 1 << 20], ids=["a head at a time", "two heads", "all"])
@pytest.mark.parametrize("padding_mask", [None, PADDING], ids=["whole", "padded"])
def test_drops_weights_as_the_formula_says(padding_mask, chunk, monkeypatch):
    monkeypatch.setattr(core.ops.attention, "_CHUNK", chunk)
    tensors, answers = heads(), []
    for function in (attend, expected):
        torch.manual_seed(5)
        attended = function(*tensors, padding_mask, 0.3)
        share = torch.linspace(-1, 1, attended.numel(), dtype=attended.dtype).view_as(attended)
        answers.append([attended, *torch.autograd.grad((attended * share).sum(), tensors)])
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-12)


def test_the_mean_over_many_draws_is_attention_without_dropout():
    tensors = heads()
    torch.manual_seed(1)
    with torch.no_grad():
        mean = torch.stack([attend(*tensors, PADDING, 0.2) for _ in range(4000)]).mean(0)
        torch.testing.assert_close(mean, attend(*tensors, PADDING), rtol=0, atol=0.05)


def test_without_dropout_it_is_pytorchs():
    tensors = heads()
    ours = attend(*tensors, PADDING)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(*tensors, ~PADDING[:, None, None]))


def test_padded_keys_get_no_gradient():
    query, key, value = heads()
    attend(query, key, value, PADDING, 0.2).sum().backward()
    for grad in (key.grad, value.grad):
        assert grad[1, :, 4:].count_nonzero() == 0
        assert grad[0].count_nonzero() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_pytorchs(dtype):
    exact = attend(*heads(), PADDING).detach()
    tensors = heads(dtype)
    torch.manual_seed(2)
    ours = torch.stack([attend(*tensors, PADDING, 1e-9) for _ in range(3)])  # too small to drop anything
    assert ours.dtype == dtype
    theirs = F.scaled_dot_product_attention(*tensors, ~PADDING[:, None, None])
    errors = [(each.double() - exact).abs().max() for each in (ours, theirs)]
    assert errors[0] < 1.5 * errors[1]
    ours.sum().backward()
    assert all(tensor.grad.isfinite().all() and tensor.grad.dtype == dtype for tensor in tensors)


def test_gradients_in_half_precision_are_as_good_as_pytorchs():
    generator = torch.Generator().manual_seed(3)
    # Keys with much in common: what is left of logits' gradients that do not sum to zero goes there.
    common = 8 * torch.randn(1, 1, 1, 8, generator=generator)
    tensors = [torch.randn(2, 2, 40, 8, generator=generator) for _ in range(3)]
    tensors[1] += common
    upstream = torch.randn(2, 2, 40, 8, generator=generator)

    def gradient(dtype, function):
        query, key, value = (tensor.to(dtype).requires_grad_() for tensor in tensors)
        function(query, key, value).backward(upstream.to(dtype))
        return query.grad.double()

    def in_steps(query, key, value):
        weights = (query @ key.transpose(2, 3) * 8**-0.5).softmax(-1)
        return weights @ value

    exact = gradient(torch.float64, in_steps)
    # The probability is too small to drop anything.
    ours = gradient(torch.bfloat16, lambda query, key, value: attend(query, key, value, None, 1e-9))
    theirs = gradient(torch.bfloat16, in_steps)
    assert (ours - exact).norm() < 1.2 * (theirs - exact).norm()


def test_an_empty_batch_is_attended():
    query, key, value = (torch.zeros(0, 2, 5, 8, requires_grad=True) for _ in range(3))
    attended = attend(query, key, value, None, 0.5)
    assert attended.shape == (0, 2, 5, 8)
    attended.sum().backward()
    assert query.grad.shape == query.shape


def test_float32_queries_are_attended_under_autocast():
    query, key, value = (torch.randn(1, 2, 5, 8) for _ in range(3))
    torch.manual_seed(0)
    outside = attend(query, key, value, None, 0.5)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(query, key, value, None, 0.5), outside)


def test_it_keeps_one_byte_a_pair():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 64, 8, generator=generator).requires_grad_() for _ in range(3))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(query, key, value, None, 0.5)
    num_pairs, num_values = 2 * 64 * 64, 2 * 64 * 8
    assert sum(kept.values()) <= num_pairs + 4 * 4 * num_values + 4 * 2 * 64

"""The parts that encoder and decoders are built of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.config.schema import ModelConfig
from core.ops.attention import attend
from core.ops.dropout import drop, relu_and_drop
from core.ops.sparse_attention import Affine


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        dims: of the input, of each hidden layer, and of the output.
    """

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(dims))

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the output."""
        return cast(nn.Linear, self.layers[-1])

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., dims[0]) -> (..., dims[-1])."""
        *hidden, last = self.layers
        for layer in hidden:
            tokens = F.relu(layer(tokens))
        output: Tensor = last(tokens)
        return output


class ExactMLP(MLP):
    """An `MLP` that autocast leaves alone: half precision cannot tell neighbouring pixels of an image apart."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., dims[0]) -> (..., dims[-1]) in the dtype of the weights."""
        with torch.autocast(tokens.device.type, enabled=False):
            return super().forward(tokens.to(self.last.weight.dtype))


class Dropout(nn.Module):
    """Dropout of a layer's values, in training mode only.

    Args:
        probability: that a value becomes zero, in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    @property
    def current_dropout(self) -> float:
        """The probability in the present mode."""
        return self.probability if self.training else 0.0

    def forward(self, values: Tensor) -> Tensor:
        """(...) -> (...)."""
        return drop(values, self.current_dropout)


class TransformerLayer(nn.Module):
    """What the layers of encoder and decoders share: residual branches and the feed-forward block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.pre_norm = config.pre_norm
        self.dropout = Dropout(config.dropout)
        self.linear1 = nn.Linear(config.hidden_dim, config.feedforward_dim)
        self.linear2 = nn.Linear(config.feedforward_dim, config.hidden_dim)

    def _residual(self, state: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        """Add what a branch makes of the state; the norm comes after the sum, or before the branch if `pre_norm`."""
        added: Tensor = self.dropout(branch(norm(state) if self.pre_norm else state))
        return state + added if self.pre_norm else norm(state + added)

    def _feed_forward(self, state: Tensor) -> Tensor:
        output: Tensor = self.linear2(relu_and_drop(self.linear1(state), self.dropout.current_dropout))
        return output

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., h, D/h)."""
        return torch.unflatten(tokens, -1, (self.num_heads, -1))


class _Attention(nn.Module):
    """What attentions share once queries, keys and values are projected: dropout and the output projection."""

    dropout: float
    out_proj: nn.Linear

    @property
    def current_dropout(self) -> float:
        """The dropout of attention weights in the present mode."""
        return self.dropout if self.training else 0.0

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, Q, h, dk), (B, N, h, dk), (B, N, h, D/h), (B, N) bool or None -> (B, Q, D)."""
        query, key, value = (tokens.transpose(1, 2) for tokens in (query, key, value))
        gathered = attend(query, key, value, padding_mask, self.current_dropout)
        output: Tensor = self.out_proj(gathered.transpose(1, 2).flatten(2))
        return output


class MultiheadAttention(_Attention, nn.MultiheadAttention):  # type: ignore[misc]  # PyTorch names its own Linear
    """PyTorch's attention with its parameters and names, and without its returned weights and rearrangements."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_dim, config.num_heads, dropout=config.dropout, batch_first=True)

    def projections(self) -> tuple[Affine, Affine, Affine]:
        """Return the projections of queries, keys and values."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (Affine(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        return query, key, value

    def forward(  # type: ignore[override]  # of PyTorch's options there are none
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, D).
            key: (B, N, D).
            value: (B, N, D).
            padding_mask: (B, N) bool, True for keys that nobody sees.

        Returns:
            (B, Q, D).
        """
        query, key, value = (
            torch.unflatten(project(tokens), -1, (self.num_heads, -1))
            for project, tokens in zip(self.projections(), (query, key, value), strict=True)
        )
        return self._attend(query, key, value, padding_mask)


class ProjectedAttention(_Attention):
    """Attention among queries, keys and values that are projected already; it owns the output projection alone.

    Logits are scaled by the key size of a head to the power of -1/2.

    Args:
        hidden_dim: D.
        dropout: of the attention weights.
    """

    def __init__(self, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, h, dk).
            key: (B, N, h, dk).
            value: (B, N, h, D/h).
            padding_mask: (B, N) bool, True for keys that nobody sees.

        Returns:
            (B, Q, D).
        """
        return self._attend(query, key, value, padding_mask)


def init_xavier(module: nn.Module) -> None:
    """Draw every matrix of a module from Xavier's uniform distribution; vectors stay."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)

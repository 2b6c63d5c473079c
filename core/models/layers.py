"""The parts that encoder and decoders are built of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.config.schema import ModelConfig


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


class TransformerLayer(nn.Module):
    """What the layers of encoder and decoders share: residual branches and the feed-forward block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.pre_norm = config.pre_norm
        self.dropout = nn.Dropout(config.dropout)
        self.linear1 = nn.Linear(config.hidden_dim, config.feedforward_dim)
        self.linear2 = nn.Linear(config.feedforward_dim, config.hidden_dim)

    def _residual(self, state: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        """Add what a branch makes of the state; the norm comes after the sum, or before the branch if `pre_norm`."""
        added: Tensor = self.dropout(branch(norm(state) if self.pre_norm else state))
        return state + added if self.pre_norm else norm(state + added)

    def _feed_forward(self, state: Tensor) -> Tensor:
        output: Tensor = self.linear2(self.dropout(F.relu(self.linear1(state))))
        return output

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., h, D/h)."""
        return torch.unflatten(tokens, -1, (self.num_heads, -1))


class ProjectedAttention(nn.Module):
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

    @property
    def current_dropout(self) -> float:
        """The dropout of attention weights in the present mode."""
        return self.dropout if self.training else 0.0

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
        seen = None if padding_mask is None else ~padding_mask[:, None, None]
        gathered = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), seen, self.current_dropout
        )
        output: Tensor = self.out_proj(gathered.transpose(1, 2).flatten(2))
        return output


def init_xavier(module: nn.Module) -> None:
    """Draw every matrix of a module from Xavier's uniform distribution; vectors stay."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)

"""The transformer encoder, and what it hands to a decoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from core.config.schema import ModelConfig
from core.models.layers import MultiheadAttention, TransformerLayer, init_xavier
from core.ops.roi_pool import FeaturePyramid


@dataclass(frozen=True)
class EncodedImages:
    """What a decoder sees of B images.

    Attributes:
        memory: (B, N, D), the encoder's output, row by row of its map.
        positions: (B, N, D), the position embedding of these N cells.
        padding_mask: (B, N) bool, True for padded cells.
        pyramid: the levels that RoIs are cropped from, the memory among them.
        sizes_hw: (B, 2), un-padded height and width in pixels.
    """

    memory: Tensor
    positions: Tensor
    padding_mask: Tensor
    pyramid: FeaturePyramid
    sizes_hw: Tensor


class EncoderLayer(TransformerLayer):
    """Self-attention among cells, and a feed-forward block (DETR, figure 10)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.self_attn = MultiheadAttention(config)
        self.norm1 = nn.LayerNorm(config.hidden_dim)
        self.norm2 = nn.LayerNorm(config.hidden_dim)

    def forward(self, state: Tensor, positions: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, N, D), (B, N, D), (B, N) bool -> (B, N, D)."""

        def attend(cells: Tensor) -> Tensor:
            placed = cells + positions
            attended: Tensor = self.self_attn(placed, placed, cells, padding_mask)
            return attended

        state = self._residual(state, attend, self.norm1)
        return self._residual(state, self._feed_forward, self.norm2)


class Encoder(nn.Module):
    """A stack of encoder layers; pre-norm layers end in a norm of their own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.norm = nn.LayerNorm(config.hidden_dim) if config.pre_norm else None
        init_xavier(self.layers)

    def forward(self, cells: Tensor, positions: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, N, D), (B, N, D), (B, N) bool, True where padded -> (B, N, D)."""
        for layer in self.layers:
            cells = layer(cells, positions, padding_mask)
        return cells if self.norm is None else self.norm(cells)

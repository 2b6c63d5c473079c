"""Position embeddings of feature maps and of single points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from core.errors import UsageError

TEMPERATURE = 10000
"""Ratio of the longest to the shortest wave."""


def sine_features(angles: Tensor, num_features: int) -> Tensor:
    """Embed angles by sines and cosines of falling frequency, in turns; (...) -> (..., num_features)."""
    index = torch.arange(num_features, dtype=angles.dtype, device=angles.device)
    wave_length = TEMPERATURE ** (2 * index.div(2, rounding_mode="floor") / num_features)
    phase = angles[..., None] / wave_length
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)


def embed_points(points_norm: Tensor, num_features: int) -> Tensor:
    """Embed points (x, y) in [0, 1], half of the features for each axis, y first; (..., 2) -> (..., num_features).

    Source: Conditional DETR (Meng et al. 2021), section 3.3.
    """
    x, y = (2 * math.pi * points_norm).unbind(-1)
    return torch.cat([sine_features(y, num_features // 2), sine_features(x, num_features // 2)], dim=-1)


class SinePositionEmbedding(nn.Module):
    """Sine embedding of each cell's share of the un-padded height and width (DETR, section 4 and appendix).

    Args:
        hidden_dim: D, divisible by 4.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Embed a map's cells: (B, H, W) bool, True where padded -> (B, D, H, W) float32, y before x."""
        inside = (~padding_mask).float()

        def angles(axis: int) -> Tensor:
            count = inside.cumsum(axis)
            return 2 * math.pi * count / (count.narrow(axis, -1, 1) + 1e-6)

        y, x = (sine_features(angles(axis), self.hidden_dim // 2) for axis in (1, 2))
        return torch.cat([y, x], dim=-1).permute(0, 3, 1, 2)


class LearnedPositionEmbedding(nn.Module):
    """A learned vector for each column and each row; padding is not told from the rest.

    Args:
        hidden_dim: D.
    """

    MAX_CELLS = 50

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(self.MAX_CELLS, hidden_dim // 2)
        self.col_embed = nn.Embedding(self.MAX_CELLS, hidden_dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def require_cells(self, num_cells: int) -> None:
        """Check that a map with so many cells along a side fits.

        Raises:
            UsageError: it does not.
        """
        if num_cells > self.MAX_CELLS:
            raise UsageError(
                f"feature maps of {num_cells} cells along a side do not fit the learned position embedding, "
                f"which has {self.MAX_CELLS} rows and columns",
                where="model.position_embedding",
                hint="use model.position_embedding=sine, or smaller images (data.max_long_side)",
            )

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Embed a map's cells: (B, H, W) bool -> (B, D, H, W), x before y.

        Raises:
            UsageError: the map is higher or wider than 50 cells.
        """
        num_images, height, width = padding_mask.shape
        self.require_cells(max(height, width))
        x = self.col_embed.weight[:width].expand(height, -1, -1)
        y = self.row_embed.weight[:height, None].expand(-1, width, -1)
        return torch.cat([x, y], dim=-1).permute(2, 0, 1).expand(num_images, -1, -1, -1)

"""RoIAlign of all levels at once: the pyramid as one table of cells, and RoI bins as weighted sums of its rows.

A bin's token is the mean of its sampling points, a sampling point the bilinear mix of four cells. Where they lie
depends on the boxes alone, so that one weighted look-up, `embedding_bag`, crops every box from every level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class RoiAxes(NamedTuple):
    """Where the sampling points of boxes lie, axis by axis: a bin's cells are its columns times its lines.

    Both are (B, Q, levels, 2, resolution, 2 n), columns before lines: n sampling points of two cells along each side
    of a bin.

    Attributes:
        rows: int32. The row of a cell in a `RoiTable` is the sum of its column's and its line's.
        weights: likewise the product; 0 for sampling points outside the map.
    """

    rows: Tensor
    weights: Tensor


class RoiBins(NamedTuple):
    """What each of N bins is made of: n x n sampling points of four cells each.

    Attributes:
        rows: (N, 4 n^2) int32, rows of a `RoiTable`; all of the bin's own image and level.
        weights: (N, 4 n^2), 0 for sampling points outside the map.
    """

    rows: Tensor
    weights: Tensor


@dataclass(frozen=True)
class RoiTable:
    """The cells of all levels of B images as rows: level by level, image by image, row by row.

    Attributes:
        features: (rows, D), float32 or float64.
        positions: (rows, D), likewise.
        num_images: B.
        sizes_wh: (levels, 2) int32, cells of each map.
        strides: (levels, 1) image pixels from one cell to the next, in the table's dtype.
        first_rows: (levels,) int32, where each level begins.
    """

    features: Tensor
    positions: Tensor
    num_images: int
    sizes_wh: Tensor
    strides: Tensor
    first_rows: Tensor

    @classmethod
    def build(cls, features: Sequence[Tensor], positions: Sequence[Tensor], strides: Sequence[int]) -> RoiTable:
        """Lay out levels (B, D, Hl, Wl); gradients flow to features and positions that require them."""
        rows, position_rows = _rows(features), _rows(positions)
        device, num_images = rows.device, len(features[0])
        # 32 bits: look-ups sort rows in the backward pass, which takes half as long as with 64.
        sizes_wh = torch.tensor([level.shape[:1:-1] for level in features], dtype=torch.int32)
        ends = num_images * sizes_wh.prod(-1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(
            features=rows,
            positions=position_rows,
            num_images=num_images,
            sizes_wh=sizes_wh.to(device, non_blocking=True),
            strides=torch.tensor(strides, dtype=rows.dtype)[:, None].to(device, non_blocking=True),
            first_rows=torch.cat([ends.new_zeros(1), ends[:-1]]).to(device, non_blocking=True),
        )

    def find_bins(self, boxes_xyxy_px: Tensor, resolution: int, sampling_ratio: int) -> RoiBins:
        """Return what the bins of boxes are made of, exactly as RoIAlign (`aligned`) has it.

        Args:
            boxes_xyxy_px: (B, Q, 4) in pixels of the padded images, finite. They get no gradient.
            resolution: bins along each side of a box.
            sampling_ratio: n, sampling points along each side of a bin.

        Returns:
            B x Q x levels x resolution^2 bins, in this order; a level's bins row by row.
        """
        axes = self.find_axes(boxes_xyxy_px, resolution, sampling_ratio)
        (columns, lines), (column_weights, line_weights) = axes.rows.unbind(-3), axes.weights.unbind(-3)
        rows = lines[..., :, None, :, None] + columns[..., None, :, None, :]
        products = line_weights[..., :, None, :, None] * column_weights[..., None, :, None, :]
        num_cells = (2 * sampling_ratio) ** 2
        return RoiBins(rows.reshape(-1, num_cells), products.reshape(-1, num_cells))

    def find_axes(self, boxes_xyxy_px: Tensor, resolution: int, sampling_ratio: int) -> RoiAxes:
        """Return what `find_bins` multiplies out; arguments are the same."""
        boxes = boxes_xyxy_px.detach().to(self.features.dtype)
        cells, weights = self._sample_axes(boxes, resolution, sampling_ratio)
        image = torch.arange(self.num_images, device=boxes.device, dtype=torch.int32)[:, None, None]
        first = self.first_rows + image * self.sizes_wh.prod(-1, dtype=torch.int32)
        columns, lines = cells.unbind(-3)
        lines = first[..., None, None] + lines * self.sizes_wh[:, :1, None]
        return RoiAxes(torch.stack([columns, lines], dim=-3), weights)

    def _sample_axes(self, boxes: Tensor, resolution: int, sampling_ratio: int) -> tuple[Tensor, Tensor]:
        """Return cells and their weights, each (B, Q, levels, 2 axes, resolution, 2 n), x before y."""
        # RoIAlign's own order of operations: a point on the rim of the map is in or out by its last bit.
        low, high = (boxes[:, :, None] * (1 / self.strides) - 0.5).chunk(2, dim=-1)
        bin_size = (high - low)[..., None, None] / resolution
        index = torch.arange(resolution, device=boxes.device)[:, None]
        offset = torch.arange(sampling_ratio, device=boxes.device) + 0.5
        points = low[..., None, None] + index * bin_size + offset * bin_size / sampling_ratio
        sizes = self.sizes_wh[..., None, None]
        is_inside = (points >= -1) & (points <= sizes)
        # Up to one cell outside, the rim goes on.
        points = torch.minimum(points.where(is_inside, 0).clamp(min=0), (sizes - 1).to(points))
        cells = points.int()
        share = points - cells
        weights = torch.stack([1 - share, share], dim=-1) * (is_inside.to(points) / sampling_ratio)[..., None]
        neighbours = torch.stack([cells, torch.minimum(cells + 1, sizes - 1)], dim=-1)
        return neighbours.flatten(-2), weights.flatten(-2)


def sum_rows(table: Tensor, bins: RoiBins) -> Tensor:
    """Return each bin's weighted sum of rows; (rows, D), N bins -> (N, D). Gradients flow to the table."""
    return F.embedding_bag(bins.rows, table, per_sample_weights=bins.weights, mode="sum")


def spread_sums(gradient: Tensor, bins: RoiBins, num_rows: int) -> Tensor:
    """Return the gradient of the table that `sum_rows` has summed.

    The transpose of a look-up is a look-up: each row of the table is the weighted sum of the bins that have read it.

    Args:
        gradient: (N, D), of the sums.
        bins: the N bins.
        num_rows: of the table.

    Returns:
        (num_rows, D).
    """
    rows, order = bins.rows.flatten().sort()
    first = torch.searchsorted(rows, torch.arange(num_rows, dtype=rows.dtype, device=rows.device))
    order = order.int()
    bags = order.div(bins.rows.shape[1], rounding_mode="floor")
    weights = bins.weights.flatten().index_select(0, order)
    return F.embedding_bag(bags, gradient, first.int(), mode="sum", per_sample_weights=weights)


def _rows(levels: Sequence[Tensor]) -> Tensor:
    # Half precision is widened: as in RoIAlign, tokens are rounded once, not term by term.
    exact = torch.promote_types(levels[0].dtype, torch.float32)
    return torch.cat([level.to(exact).flatten(2).transpose(1, 2).flatten(0, 1) for level in levels])

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.ops.roi_pool import SAMPLING_RATIO, FeaturePyramid, finite_boxes, pool_roi_tokens
from core.ops.roi_table import RoiTable, sum_rows

WIDTH, HEIGHT = 96, 64
STRIDES = {1: (32,), 3: (8, 16, 32), 4: (8, 16, 32, 64)}
B, D = 2, 3


def random_pyramid(strides: tuple[int, ...], dtype: torch.dtype = torch.float64) -> FeaturePyramid:
    """Levels whose right and lower rim cover the image only just, as maps of padded images do."""
    generator = torch.Generator().manual_seed(3)
    sizes = [(-(-HEIGHT // stride), -(-(WIDTH - 5) // stride)) for stride in strides]

    def levels() -> list[Tensor]:
        return [torch.randn(B, D, *size, generator=generator, dtype=dtype) for size in sizes]

    return FeaturePyramid(levels(), levels(), strides)


def varied_boxes(dtype: torch.dtype = torch.float64) -> Tensor:
    """(B, Q, 4): everywhere in, around and far from the image, of all sizes, none and negative ones included."""
    generator = torch.Generator().manual_seed(4)
    centre = torch.tensor([WIDTH, HEIGHT], dtype=dtype) * (3 * torch.rand(B, 400, 2, generator=generator).to(dtype) - 1)
    size = 10 ** (6 * torch.rand(B, 400, 2, generator=generator).to(dtype) - 2)
    size[:, :20] = 0
    size[:, 20:40] *= -1
    random = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    # Whole pixels hit the cells' centres and the rims of maps exactly.
    return torch.cat([random, random[:, :300].round(), (random[:, :300] / 8).round() * 8], dim=1)


def pool(pyramid: FeaturePyramid, boxes: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    bins = pyramid.table.find_bins(finite_boxes(boxes), resolution, SAMPLING_RATIO)
    shape = (*boxes.shape[:2], len(pyramid.features) * resolution**2, D)
    return sum_rows(pyramid.table.features, bins).view(shape), sum_rows(pyramid.table.positions, bins).view(shape)


@pytest.mark.parametrize("resolution", [1, 2, 4, 7])
@pytest.mark.parametrize("num_levels", STRIDES)
def test_equals_roi_align(num_levels, resolution):
    pyramid, boxes = random_pyramid(STRIDES[num_levels]), varied_boxes()
    ours, expected = pool(pyramid, boxes, resolution), pool_roi_tokens(pyramid, boxes, resolution)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_equals_roi_align_in_single_precision():
    """In single precision the rim is hit or missed by rounding alone."""
    pyramid, boxes = random_pyramid(STRIDES[4], torch.float32), varied_boxes(torch.float32)
    for resolution in (4, 7):
        ours, expected = pool(pyramid, boxes, resolution), pool_roi_tokens(pyramid, boxes, resolution)
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("x0", "x1", "expected"),
    [
        (-8, 8, 0.0),  # Points at -1 and 0: both read cell 0.
        (-8.125, 8, 0.0),  # The first point is outside; the second reads cell 0.
        (88, 104, 11.0),  # Points at 11 and 12, the last cell and the rim.
        (88, 104.125, 5.5),  # The second point is outside.
        (86, 94, 10.75),  # Points at 10.5 and 11: between two cells, and on the last one.
        (4, 4, 0.0),
        (20, 20, 2.0),
        (8, 40, 2.5),  # Points at 1.5 and 3.5.
        (40, 8, 2.5),
        (-300, -200, 0.0),
        (float("nan"), 40, 2.0),
        (-float("inf"), 40, 2.0),
    ],
)
def test_points_on_the_rim(x0, x1, expected):
    columns = torch.arange(12, dtype=torch.float64).expand(1, 1, 8, 12)
    pyramid = FeaturePyramid([columns], [columns], (8,))
    boxes = torch.tensor([[[x0, 20, x1, 20]]], dtype=torch.float64)
    bins = pyramid.table.find_bins(finite_boxes(boxes), 1, SAMPLING_RATIO)
    assert sum_rows(pyramid.table.features, bins).item() == pytest.approx(expected, abs=1e-9)
    assert pool_roi_tokens(pyramid, boxes, 1)[0].item() == pytest.approx(expected, abs=1e-9)


def test_weights_tell_inside_from_outside():
    ones = torch.ones(1, 1, 8, 12)
    table = RoiTable.build([ones], [ones], (8,))
    boxes = torch.tensor([[[-200.0, -200.0, -100.0, -100.0], [10.0, 10.0, 50.0, 40.0], [-8.0, 16.0, -8.1, 48.0]]])
    sums = table.find_bins(boxes, 2, SAMPLING_RATIO).weights.sum(-1).view(3, 4)
    assert torch.equal(sums, torch.tensor([0.0, 1.0, 0.0]).expand(4, 3).T)


def test_bins_read_their_own_image_and_level_only():
    pyramid, boxes = random_pyramid(STRIDES[3]), varied_boxes()
    table = pyramid.table
    rows = table.find_bins(boxes, 4, SAMPLING_RATIO).rows.view(B, boxes.shape[1], 3, -1)
    first = 0
    for level, feature in enumerate(pyramid.features):
        for image in range(B):
            last = first + feature[0, 0].numel()
            of_level = rows[image, :, level]
            assert of_level.min() == first
            assert of_level.max() == last - 1
            assert torch.equal(table.features[first:last], feature[image].flatten(1).T)
            first = last
    assert len(table.features) == len(table.positions) == first
    assert rows.dtype == torch.int32


def test_gradients_equal_roi_align():
    answers = []
    for crop in (pool, pool_roi_tokens):
        pyramid = random_pyramid(STRIDES[3])
        levels = [*pyramid.features, *pyramid.positions]
        for level in levels:
            level.requires_grad_()
        boxes = varied_boxes().requires_grad_()
        tokens, positions = crop(pyramid, boxes, 2)
        share = torch.linspace(-1, 1, tokens.numel(), dtype=tokens.dtype).view_as(tokens)
        ((tokens * share).sum() + (positions * share**2).sum()).backward()
        assert boxes.grad is None
        answers.append([level.grad for level in levels])
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-9)


def test_the_table_is_laid_out_once():
    pyramid = random_pyramid(STRIDES[3])
    assert pyramid.table is pyramid.table


def test_half_precision_is_widened():
    pyramid = random_pyramid(STRIDES[3], torch.bfloat16)
    assert pyramid.table.features.dtype == pyramid.table.positions.dtype == torch.float32

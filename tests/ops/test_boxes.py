"""Boxes against torchvision, and by hand."""

from __future__ import annotations

import torch
from torchvision.ops import box_area, box_convert, generalized_box_iou

from core.ops.boxes import (
    area_of,
    cxcywh_to_xyxy,
    giou_aligned,
    giou_pairwise,
    inverse_sigmoid,
    norm_to_px,
    xyxy_to_cxcywh,
)


def random_xyxy(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.rand(2, *shape, 2, generator=generator, dtype=torch.float64)
    return torch.cat([low, low + size + 0.01], -1)


def test_formats():
    boxes = random_xyxy(50)
    torch.testing.assert_close(xyxy_to_cxcywh(boxes), box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    torch.testing.assert_close(cxcywh_to_xyxy(torch.tensor([0.5, 0.4, 0.2, 0.6])), torch.tensor([0.4, 0.1, 0.6, 0.7]))


def test_pixels_take_width_for_x_and_height_for_y():
    boxes = torch.tensor([[[0.5, 0.5, 0.1, 0.2]], [[0.0, 1.0, 1.0, 0.25]]])
    sizes_hw = torch.tensor([[100, 200], [40, 30]])
    assert norm_to_px(boxes, sizes_hw).tolist() == [[[100, 50, 20, 20]], [[0, 40, 30, 10]]]


def test_overlaps():
    a, b = random_xyxy(6, seed=1), random_xyxy(9, seed=2)
    torch.testing.assert_close(area_of(a), box_area(a))
    torch.testing.assert_close(giou_pairwise(a, b), generalized_box_iou(a, b))
    torch.testing.assert_close(giou_aligned(a, b[:6]), generalized_box_iou(a, b[:6]).diagonal())
    torch.testing.assert_close(giou_aligned(a, a), torch.ones(6, dtype=torch.float64))
    apart = torch.tensor([[0.0, 0.0, 1.0, 1.0], [9.0, 0.0, 10.0, 1.0]])
    torch.testing.assert_close(giou_aligned(apart[0], apart[1]), torch.tensor(-0.8))


def test_leading_dimensions_broadcast():
    a, b = random_xyxy(3, 2, 5, seed=1), random_xyxy(2, 4, seed=2)
    pairwise = giou_pairwise(a, b)
    assert pairwise.shape == (3, 2, 5, 4)
    torch.testing.assert_close(pairwise[2, 1], generalized_box_iou(a[2, 1], b[1]))


def test_no_boxes():
    none, some = torch.zeros(0, 4), random_xyxy(3).float()
    assert cxcywh_to_xyxy(none).shape == xyxy_to_cxcywh(none).shape == (0, 4)
    assert area_of(none).shape == giou_aligned(none, none).shape == (0,)
    assert giou_pairwise(some, none).shape == (3, 0)
    assert norm_to_px(torch.zeros(2, 0, 4), torch.tensor([[1, 2], [3, 4]])).shape == (2, 0, 4)


def test_inverse_sigmoid():
    logits = torch.linspace(-8, 8, 33, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid()), logits)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    limit = torch.tensor(1e-5).log()
    torch.testing.assert_close(ends, torch.stack([limit, limit, -limit, -limit]))

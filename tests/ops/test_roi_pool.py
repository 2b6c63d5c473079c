from __future__ import annotations

import sys
import types

import pytest
import torch
import torchvision
from torchvision.ops import roi_align

from core.errors import MachineError
from core.ops.roi_pool import FeaturePyramid, pool_roi_tokens

STRIDES = (8, 16)
IMAGE_HW = (64, 96)


def ramp_pyramid() -> FeaturePyramid:
    """Two images whose features are (x of the cell, y of the cell, image + 10 x level), and positions minus that."""
    features = []
    for level, stride in enumerate(STRIDES):
        height, width = IMAGE_HW[0] // stride, IMAGE_HW[1] // stride
        x = torch.arange(width, dtype=torch.float32).expand(height, width)
        y = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
        features.append(torch.stack([torch.stack([x, y, torch.full_like(x, image + 10 * level)]) for image in (0, 1)]))
    return FeaturePyramid(features, [-feature for feature in features], STRIDES)


def expected_ramp(box: tuple[float, ...], resolution: int, image: int) -> torch.Tensor:
    """The value of the ramps in the middle of each bin: cell i has its centre at (i + 0.5) x stride."""
    x0, y0, x1, y1 = box
    tokens = []
    for level, stride in enumerate(STRIDES):
        for row in range(resolution):
            for column in range(resolution):
                x = x0 + (column + 0.5) * (x1 - x0) / resolution
                y = y0 + (row + 0.5) * (y1 - y0) / resolution
                tokens.append([x / stride - 0.5, y / stride - 0.5, image + 10 * level])
    return torch.tensor(tokens)


@pytest.mark.parametrize("resolution", [1, 2, 4])
def test_tokens_lie_where_their_bins_lie_level_by_level_and_row_by_row(resolution):
    boxes = [[(16.0, 12.0, 70.0, 50.0), (20.0, 20.0, 28.0, 44.0)], [(40.0, 16.0, 80.0, 24.0), (9.0, 9.0, 87.0, 55.0)]]
    tokens, positions = pool_roi_tokens(ramp_pyramid(), torch.tensor(boxes), resolution)
    assert tokens.shape == (2, 2, 2 * resolution**2, 3)
    for image in (0, 1):
        for query in (0, 1):
            expected = expected_ramp(boxes[image][query], resolution, image)
            torch.testing.assert_close(tokens[image, query], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(positions, -tokens)


def test_outside_the_map_is_zero_and_boxes_are_not_clipped():
    ones = torch.ones(1, 1, 8, 12)
    pyramid = FeaturePyramid([ones], [ones], (8,))
    boxes = torch.tensor([[[-200.0, -200.0, -100.0, -100.0], [-48.0, 16.0, 48.0, 48.0]]])
    tokens, _ = pool_roi_tokens(pyramid, boxes, 4)
    assert tokens[0, 0].abs().max() == 0
    # Clipped to the image, every bin would see ones.
    assert tokens[0, 1, :, 0].view(4, 4)[:, 0].abs().max() == 0
    assert tokens[0, 1, :, 0].view(4, 4)[:, 3].min() == 1


def test_no_queries_give_no_tokens():
    tokens, positions = pool_roi_tokens(ramp_pyramid(), torch.zeros(2, 0, 4), 4)
    assert tokens.shape == positions.shape == (2, 0, 32, 3)


def test_gradients_flow_to_features_and_learned_positions_but_not_to_boxes():
    feature = torch.rand(1, 2, 8, 12, requires_grad=True)
    position = torch.rand(1, 2, 8, 12, requires_grad=True)
    boxes = torch.tensor([[[10.0, 10.0, 50.0, 40.0]]], requires_grad=True)
    tokens, positions = pool_roi_tokens(FeaturePyramid([feature], [position], (8,)), boxes, 2)
    (tokens.sum() + positions.sum()).backward()
    assert feature.grad is not None
    assert position.grad is not None
    # Every bin's weights sum to one.
    assert feature.grad.sum().item() == pytest.approx(8, rel=1e-5)
    assert boxes.grad is None


def test_half_precision_features_keep_exact_boxes():
    pyramid = ramp_pyramid()
    half = FeaturePyramid([level.bfloat16() for level in pyramid.features], pyramid.positions, STRIDES)
    boxes = torch.tensor([[[33.3, 12.7, 70.1, 50.9]], [[40.4, 16.6, 80.2, 24.8]]])
    tokens, positions = pool_roi_tokens(half, boxes, 2)
    assert tokens.dtype == torch.bfloat16
    assert positions.dtype == torch.float32
    torch.testing.assert_close(tokens.float(), -positions, rtol=2**-8, atol=0)


def test_detectron2_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.setitem(sys.modules, "detectron2.layers", None)
    with pytest.raises(MachineError) as caught:
        pool_roi_tokens(ramp_pyramid(), torch.zeros(2, 1, 4), 4, backend="detectron2")
    assert caught.value.where == "model.roi_backend"
    assert "python -m pip install 'git+https://github.com/facebookresearch/detectron2.git'" in str(caught.value.hint)


def test_missing_operators_are_named(monkeypatch):
    monkeypatch.setattr(torchvision.extension, "_has_ops", lambda: False)
    with pytest.raises(MachineError, match="no compiled operators"):
        pool_roi_tokens(ramp_pyramid(), torch.zeros(2, 1, 4), 4)


class StandInROIAlign:
    """A stand-in with the signature of detectron2.layers.ROIAlign: it is not detectron2 itself."""

    def __init__(self, output_size, spatial_scale, sampling_ratio, aligned=True):
        self.arguments = (output_size, spatial_scale, sampling_ratio, aligned)

    def __call__(self, level, rois):
        output_size, spatial_scale, sampling_ratio, aligned = self.arguments
        assert rois.shape[1] == 5
        return roi_align(level, rois, output_size, spatial_scale, sampling_ratio, aligned)


def test_detectron2_adapter_calls_its_roi_align_rightly(monkeypatch):
    layers = types.ModuleType("detectron2.layers")
    layers.ROIAlign = StandInROIAlign  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "detectron2", types.ModuleType("detectron2"))
    monkeypatch.setitem(sys.modules, "detectron2.layers", layers)
    boxes = torch.tensor([[[16.0, 12.0, 70.0, 50.0]], [[-20.0, 16.0, 80.0, 24.0]]])
    ours, theirs = (pool_roi_tokens(ramp_pyramid(), boxes, 4, backend) for backend in ("torchvision", "detectron2"))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])

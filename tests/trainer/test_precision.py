from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.config.schema import BackboneConfig, LabelAugmentationConfig, LossConfig
from core.errors import DivergedError, UsageError
from core.losses.criterion import Criterion
from core.models.backbone import build_backbone
from core.models.decoder import Reference
from core.models.detector import Detector
from core.models.position import SinePositionEmbedding, embed_points
from core.models.resnet import normed
from core.models.specs import SPECS
from core.ops.boxes import cxcywh_to_xyxy, inverse_sigmoid, norm_to_px
from core.ops.roi_pool import FeaturePyramid, pool_roi_tokens
from core.ops.roi_table import RoiTable
from core.trainer.optimizer import clip_gradients
from core.trainer.precision import MAX_SKIPPED_IN_A_ROW, MixedPrecision
from tests.losses.samples import random_targets
from tests.models.test_detector import random_batch, small_detector

CPU = torch.device("cpu")
BATCH = random_batch((96, 128), (80, 100))
TARGETS = random_targets([3, 2], seed=0)


def lively_detector(name: str, attention: str = "fast", **changes: Any) -> Detector:
    """Return a detector whose box heads say something, as they do after some training."""
    detector = small_detector(name, attention=attention, dropout=0.0, **changes).train()
    generator = torch.Generator().manual_seed(5)
    for head in detector.decoder.bbox_embed:
        nn.init.normal_(head.last.weight, std=0.3, generator=generator)
    return detector


def loss_and_gradients(detector: Detector, precision: str) -> tuple[float, dict[str, Tensor]]:
    mixed = MixedPrecision(precision, CPU)
    criterion = Criterion(LossConfig(), LabelAugmentationConfig(), detector.spec.family, 3)
    with mixed.autocast():
        output = detector(BATCH)
    assert output.boxes_cxcywh_norm.dtype == torch.float32
    assert output.logits.dtype == getattr(torch, precision)
    losses = criterion(output, TARGETS)
    assert losses.total.dtype == torch.float32
    mixed.backward(losses.total)
    gradients = {name: each.grad for name, each in detector.named_parameters() if each.grad is not None}
    detector.zero_grad(set_to_none=True)
    return losses.total.item(), gradients


@pytest.mark.parametrize("attention", ["fast", "plain"])
@pytest.mark.parametrize("name", SPECS)
def test_bfloat16_trains_all_models_nearly_as_float32_does(name: str, attention: str) -> None:
    detector = lively_detector(name, attention)
    expected, exact = loss_and_gradients(detector, "float32")
    loss, gradients = loss_and_gradients(detector, "bfloat16")
    assert loss == pytest.approx(expected, rel=0.02)
    assert gradients.keys() == exact.keys() == dict(detector.named_parameters()).keys()
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    ours, theirs = (torch.cat([each.flatten() for each in grads.values()]) for grads in (gradients, exact))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9


@pytest.mark.parametrize("name", SPECS)
def test_boxes_are_exact_sums_whatever_autocast_does(name: str) -> None:
    detector = lively_detector(name)
    decoder = detector.decoder
    states: list[Tensor] = []
    decoder.norm.register_forward_hook(lambda module, inputs, normed: states.append(normed))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            boxes = detector(BATCH).boxes_cxcywh_norm
        query_pos = detector.query_embed.weight.expand(len(boxes[0]), -1, -1)
        reference = decoder.first_reference(query_pos)
        for index, (state, seen) in enumerate(zip(states, boxes, strict=True)):
            head = decoder.bbox_embed[index if decoder.refines_boxes else 0]
            assert torch.equal(seen, (head(state) + reference.logits).sigmoid())
            if decoder.refines_boxes:
                reference = Reference.refined(seen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_places_are_the_same_to_the_last_bit_under_autocast(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes_norm = torch.rand(2, 9, 4, generator=generator)
    sizes_hw = torch.tensor([[800, 1333], [777, 999]])
    boxes_px = norm_to_px(cxcywh_to_xyxy(boxes_norm), sizes_hw)
    mask = torch.zeros(2, 25, 42, dtype=torch.bool)
    mask[1, 20:] = True
    features = [torch.randn(2, 8, side, side + 3, generator=generator) for side in (20, 10)]
    pyramid = FeaturePyramid(features, features, (32, 64))
    places: dict[str, Callable[[], Any]] = {
        "pixels": lambda: norm_to_px(cxcywh_to_xyxy(boxes_norm), sizes_hw),
        "sampling points": lambda: RoiTable.build(features, features, (32, 64)).find_bins(boxes_px, 4, 2).weights,
        "cells": lambda: RoiTable.build(features, features, (32, 64)).find_bins(boxes_px, 4, 2).rows,
        "tokens": lambda: pool_roi_tokens(pyramid, boxes_px, 4)[0],
        "logits": lambda: inverse_sigmoid(boxes_norm),
        "points": lambda: embed_points(boxes_norm[..., :2], 32),
        "map": lambda: SinePositionEmbedding(32)(mask),
    }
    for name, place in places.items():
        expected = place()
        with torch.autocast("cpu", dtype):
            found = place()
        assert found.dtype == expected.dtype, name
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("attention", ["fast", "plain"])
@pytest.mark.parametrize("name", ["de-detr", "dela-conddetr"])
def test_rois_are_cropped_from_exact_boxes(monkeypatch: pytest.MonkeyPatch, name: str, attention: str) -> None:
    cropped: list[Tensor] = []
    if attention == "fast":
        find_bins = RoiTable.find_bins

        def seen_bins(self: RoiTable, boxes: Tensor, *rest: int) -> Any:
            cropped.append(boxes)
            return find_bins(self, boxes, *rest)

        monkeypatch.setattr(RoiTable, "find_bins", seen_bins)
    else:

        def seen_pool(pyramid: FeaturePyramid, boxes: Tensor, *rest: Any) -> Any:
            cropped.append(boxes)
            return pool_roi_tokens(pyramid, boxes, *rest)

        monkeypatch.setattr("core.ops.sparse_attention.pool_roi_tokens", seen_pool)
    detector = lively_detector(name, attention).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        boxes_norm = detector(BATCH).boxes_cxcywh_norm
    assert len(cropped) == len(boxes_norm) - 1
    for boxes, seen in zip(cropped, boxes_norm, strict=False):
        assert torch.equal(boxes, norm_to_px(cxcywh_to_xyxy(seen), BATCH.sizes_hw))


def test_frozen_batch_norm_keeps_half_precision() -> None:
    config = BackboneConfig(name="resnet18", weights=None, norm="frozen_batch_norm", freeze_stem=True)
    backbone = build_backbone(config, 3).train()
    convolution, norm = backbone.body["conv1"], backbone.body["bn1"]
    for buffer in norm.buffers():
        nn.init.uniform_(buffer, 0.5, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        maps = backbone(BATCH.pixels)
        halves = normed(convolution, norm, BATCH.pixels)
    assert {each.dtype for each in (*maps, halves)} == {torch.bfloat16}
    torch.testing.assert_close(halves.float(), norm(convolution(BATCH.pixels)), rtol=0.01, atol=0.02)
    sum(each.float().square().mean() for each in maps).backward()
    assert all(each.grad.isfinite().all() for each in backbone.parameters() if each.requires_grad)


@pytest.mark.parametrize("network", ["mobilenetv3_small_050", "convnext_atto"])
def test_timm_networks_run_under_autocast(network: str) -> None:
    pytest.importorskip("timm")
    backbone = BackboneConfig(name=f"timm/{network}", weights=None)
    detector = lively_detector("dela-detr", backbone=backbone)
    expected, _ = loss_and_gradients(detector, "float32")
    loss, gradients = loss_and_gradients(detector, "bfloat16")
    assert loss == pytest.approx(expected, rel=0.03)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def parameter_and_optimizer() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.ones(2))
    return parameter, torch.optim.SGD([parameter], lr=0.5)


def make_step(mixed: MixedPrecision, parameter: nn.Parameter, optimizer: torch.optim.Optimizer, factor: float) -> bool:
    optimizer.zero_grad()
    mixed.backward((factor * parameter).sum())
    mixed.unscale(optimizer)
    return mixed.step(optimizer, clip_gradients([parameter], 0.0).item())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_is_made_with_unscaled_gradients(precision: str) -> None:
    parameter, optimizer = parameter_and_optimizer()
    mixed = MixedPrecision(precision, CPU)
    assert make_step(mixed, parameter, optimizer, 3.0)
    assert parameter.grad.tolist() == [3.0, 3.0]
    assert parameter.tolist() == [-0.5, -0.5]
    assert mixed.num_skipped_in_a_row == 0


def test_f58_overflow_skips_the_step_and_too_many_end_the_run() -> None:
    parameter, optimizer = parameter_and_optimizer()
    mixed = MixedPrecision("float16", CPU)
    assert not make_step(mixed, parameter, optimizer, float("inf"))
    assert mixed.num_skipped_in_a_row == 1
    assert parameter.tolist() == [1.0, 1.0]
    assert make_step(mixed, parameter, optimizer, 1.0)
    assert mixed.num_skipped_in_a_row == 0
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        assert not make_step(mixed, parameter, optimizer, float("nan"))
    with pytest.raises(DivergedError, match="float16 in 50 steps in a row") as stopped:
        make_step(mixed, parameter, optimizer, float("inf"))
    assert stopped.value.exit_code == 6
    assert parameter.tolist() == [0.5, 0.5]


def test_scale_and_count_survive_a_file() -> None:
    parameter, optimizer = parameter_and_optimizer()
    mixed = MixedPrecision("float16", CPU)
    for factor in (1.0, float("inf"), float("inf")):
        make_step(mixed, parameter, optimizer, factor)
    file = io.BytesIO()
    torch.save(mixed.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = MixedPrecision("float16", CPU)
    again.load_state_dict(state)
    assert again.num_skipped_in_a_row == 2
    assert again.scaler.state_dict() == mixed.scaler.state_dict()
    assert again.state_dict() == state
    other = MixedPrecision("bfloat16", CPU)
    other.load_state_dict(state)
    again.load_state_dict(other.state_dict())
    assert make_step(again, parameter, optimizer, 1.0)


def test_float16_finds_its_scale_and_trains() -> None:
    torch.manual_seed(0)
    # Without convolutions, whose float16 takes seconds on many a CPU.
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, fused=True)
    mixed = MixedPrecision("float16", CPU)
    inputs = torch.randn(64, 8)
    losses, was_made = [], []
    for _ in range(40):
        optimizer.zero_grad()
        with mixed.autocast():
            output = network(inputs)
        assert output.dtype == torch.float16
        loss = (output.float() - inputs[:, :1]).square().sum()
        mixed.backward(loss)
        mixed.unscale(optimizer)
        was_made.append(mixed.step(optimizer, clip_gradients(network.parameters(), 0.0).item()))
        losses.append(loss.item())
    assert not was_made[0]
    assert all(was_made[10:])
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in network.parameters())


def test_devices_that_cannot_are_named() -> None:
    with pytest.raises(UsageError, match="float16") as refused:
        MixedPrecision("float16", torch.device("mps"))
    assert refused.value.where == "run.precision"
    assert "bfloat16" in str(refused.value.hint)

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from core.config.schema import BackboneConfig, ModelConfig
from core.errors import UsageError
from core.models.backbone import build_backbone
from core.models.detector import Detector, build_detector, num_backbone_levels
from core.models.specs import SPECS, DecoderFamily
from core.ops import sparse_attention
from core.ops.roi_table import RoiTable
from core.structures import ImageBatch
from tests.golden_files import RecordedBackbone

# Trainable parameters with ResNet-50 and COCO's 91 ids. detr and conddetr: as their authors' training logs print.
NUM_TRAINABLE = {
    "detr": 41_302_368,
    "de-detr": 42_545_218,
    "dela-detr": 42_596_418,
    "conddetr": 43_196_001,
    "de-conddetr": 44_371_260,
    "dela-conddetr": 44_371_260,
}
# As with pretrained weights, which come from the checkpoint.
PRETRAINED_AFTERWARDS = BackboneConfig(weights=None, norm="frozen_batch_norm", freeze_stem=True)
SMALL = {"hidden_dim": 32, "num_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 3, "feedforward_dim": 48}
SWITCHES = {
    "levels1": {"num_feature_levels": 1},
    "levels4": {"num_feature_levels": 4},
    "resolution3": {"roi_resolution": 3},
    "no refinement": {"box_refinement": False},
    "learned": {"position_embedding": "learned"},
    "learned, levels4, no refinement": {
        "position_embedding": "learned",
        "num_feature_levels": 4,
        "box_refinement": False,
    },
    "no encoder": {"num_encoder_layers": 0},
}


def small_config(name: str, **changes) -> ModelConfig:
    return ModelConfig(**{"name": name, "num_queries": 7, **SMALL, **changes})


def small_detector(name: str, num_classes: int = 3, backbone: BackboneConfig | None = None, **changes) -> Detector:
    torch.manual_seed(0)
    config = small_config(name, **changes)
    backbone = backbone or BackboneConfig(name="resnet10", weights=None, norm="batch_norm", freeze_stem=False)
    return build_detector(config, build_backbone(backbone, num_backbone_levels(config)), num_classes)


def random_batch(*sizes_hw: tuple[int, int]) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    height, width = (max(sides) for sides in zip(*sizes_hw, strict=True))
    pixels = torch.zeros(len(sizes_hw), 3, height, width)
    mask = torch.ones(len(sizes_hw), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes_hw):
        pixels[index, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[index, :h, :w] = False
    return ImageBatch(pixels, mask, torch.tensor(sizes_hw))


@pytest.mark.parametrize("name", SPECS)
def test_the_published_models(name):
    config = ModelConfig(name=name, num_queries=SPECS[name].num_queries)
    backbone = build_backbone(PRETRAINED_AFTERWARDS, num_backbone_levels(config))
    detector = build_detector(config, backbone, 91).eval()
    assert sum(each.numel() for each in detector.parameters() if each.requires_grad) == NUM_TRAINABLE[name]
    with torch.no_grad():
        output = detector(random_batch((64, 96)))
    num_logits = 92 if SPECS[name].family is DecoderFamily.DETR else 91
    assert output.logits.shape == (6, 1, SPECS[name].num_queries, num_logits)
    assert output.boxes_cxcywh_norm.shape == (6, 1, SPECS[name].num_queries, 4)
    assert output.logits.isfinite().all()
    assert 0 < output.boxes_cxcywh_norm.min() <= output.boxes_cxcywh_norm.max() < 1


@pytest.mark.parametrize("name", SPECS)
def test_initialisation(name):
    detector = small_detector(name)
    decoder = detector.decoder
    bias = -math.log(99)
    for index, (class_head, box_head) in enumerate(zip(decoder.class_embed, decoder.bbox_embed, strict=True)):
        if name == "detr":
            assert class_head.bias.abs().max() < 1
            assert box_head.last.weight.abs().max() > 0
            continue
        torch.testing.assert_close(class_head.bias, torch.full_like(class_head.bias, bias))
        assert box_head.last.weight.abs().max() == 0
        size_bias = -2.0 if detector.spec.is_sparse and index == 0 else 0.0
        assert box_head.last.bias.tolist() == [0, 0, size_bias, size_bias]
    assert len(decoder.bbox_embed) == (3 if detector.spec.is_sparse else 1)
    for module in (detector.encoder.layers, decoder.layers):
        for key, matrix in module.named_parameters():
            if matrix.dim() > 1:
                bound = math.sqrt(6 / sum(matrix.shape))
                assert bound * 0.9 < matrix.abs().max() <= bound, key
    assert 0.8 < detector.query_embed.weight.std() < 1.2
    if detector.spec.family is DecoderFamily.CONDITIONAL:
        for layer in (*decoder.query_scale.layers, *decoder.ref_point_head.layers):
            assert layer.weight.abs().max() <= math.sqrt(6 / sum(layer.weight.shape))


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", SPECS)
def test_switches_build_run_and_train_every_parameter(name, switch):
    detector = small_detector(name, **SWITCHES[switch]).train()
    output = detector(random_batch((64, 80), (50, 40)))
    (output.logits.sum() + output.boxes_cxcywh_norm.sum()).backward()
    assert output.logits.isfinite().all()
    assert [key for key, each in detector.named_parameters() if each.grad is None] == []


@pytest.mark.parametrize("name", SPECS)
def test_state_dict_holds_every_tensor_once(name):
    detector = small_detector(name, box_refinement=False)
    state = detector.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


@pytest.mark.parametrize("name", ["de-detr", "dela-conddetr"])
@pytest.mark.parametrize(("num_levels", "strides"), [(1, (16,)), (3, (8, 16, 16)), (4, (8, 16, 16, 32))])
def test_dilation_keeps_real_strides(name, num_levels, strides):
    backbone = BackboneConfig(weights=None, dilation=True)
    detector = small_detector(name, backbone=backbone, num_feature_levels=num_levels).eval()
    batch = random_batch((64, 96))
    with torch.no_grad():
        images = detector.encode(batch)
        detector(batch)
    assert images.pyramid.strides == strides
    sizes = [tuple(level.shape[-2:]) for level in images.pyramid.features]
    assert sizes == [(64 // stride, 96 // stride) for stride in strides]
    assert images.memory.shape == (1, 4 * 6, 32)


@pytest.mark.parametrize(
    ("name", "changes", "where"),
    [
        *((name, {"pre_norm": True}, "model.pre_norm") for name in SPECS if name != "detr"),
        *((name, {"num_decoder_layers": 1}, "model.num_decoder_layers") for name in SPECS if name != "detr"),
        ("detr", {"reference_dim": 4}, "model.reference_dim"),
        ("conddetr", {"reference_dim": 4}, "model.reference_dim"),
        ("de-conddetr", {"reference_dim": 4}, "model.reference_dim"),
        ("de-detr", {"hidden_dim": 48}, "model.hidden_dim"),
        ("de-detr", {"roi_backend": "detectron2"}, "model.roi_backend"),
        ("de-dert", {}, "--model"),
    ],
)
def test_refuses_by_name(name, changes, where):
    with pytest.raises(UsageError) as caught:
        small_detector(name, **changes)
    assert caught.value.where == where
    assert caught.value.hint


def test_backbone_must_have_the_levels():
    backbone = build_backbone(BackboneConfig(name="resnet10", weights=None), 1)
    with pytest.raises(ValueError, match="needs 3 maps"):
        build_detector(small_config("de-detr"), backbone, 3)


def test_learned_embedding_refuses_large_images():
    detector = small_detector("de-detr", position_embedding="learned").eval()
    with pytest.raises(UsageError, match="51 cells"):
        detector(random_batch((32, 51 * 8)))


@pytest.mark.parametrize("name", SPECS)
def test_images_of_a_batch_do_not_meet(name):
    """An image's answer is the same with and without a neighbour, if the padding is the same."""
    detector = small_detector(name).eval()
    batch = random_batch((64, 96), (40, 50))
    alone = ImageBatch(batch.pixels[1:], batch.padding_mask[1:], batch.sizes_hw[1:])
    with torch.no_grad():
        together, single = detector(batch), detector(alone)
    torch.testing.assert_close(together.logits[:, 1:], single.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.boxes_cxcywh_norm[:, 1:], single.boxes_cxcywh_norm, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["detr", "conddetr"])
def test_dense_models_do_not_see_padded_cells(name):
    features = [torch.randn(2, 16, 3, 4)]
    detector = build_detector(small_config(name), RecordedBackbone(features, (32,)), 3).eval()
    batch = random_batch((96, 128), (50, 60))
    with torch.no_grad():
        before = detector(batch)
        features[0][1, :, 2:] = 1e3
        features[0][1, :, :, 2:] = -1e3
        after = detector(batch)
    assert torch.equal(before.logits[:, 0], after.logits[:, 0])
    torch.testing.assert_close(before.logits, after.logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_double_precision_agrees(name):
    detector = small_detector(name, hidden_dim=64).eval()
    nn.init.normal_(detector.decoder.bbox_embed[-1].last.weight, std=0.1)
    batch = random_batch((64, 96), (40, 50))
    exact_batch = ImageBatch(batch.pixels.double(), batch.padding_mask, batch.sizes_hw)
    with torch.no_grad():
        single = detector(batch)
        exact = detector.double()(exact_batch)
    assert exact.logits.dtype == exact.boxes_cxcywh_norm.dtype == torch.float64
    torch.testing.assert_close(single.logits.double(), exact.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(single.boxes_cxcywh_norm.double(), exact.boxes_cxcywh_norm, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_autocast_keeps_boxes_in_full_precision(name):
    detector = small_detector(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = detector(random_batch((64, 80), (50, 40)))
    assert output.boxes_cxcywh_norm.dtype == torch.float32
    output.boxes_cxcywh_norm.sum().backward()


@pytest.mark.parametrize("name", SPECS)
def test_dropout_only_in_training(name):
    detector = small_detector(name, backbone=BackboneConfig(name="resnet10", weights=None))
    batch = random_batch((64, 64))
    with torch.no_grad():
        assert not torch.equal(detector.train()(batch).logits, detector(batch).logits)
        assert torch.equal(detector.eval()(batch).logits, detector(batch).logits)


@pytest.mark.parametrize("attention", ["plain", "fast"])
@pytest.mark.parametrize("name", SPECS)
def test_rois_are_cropped_between_layers_only(monkeypatch, name, attention):
    calls = []
    owner, crop = (sparse_attention, "pool_roi_tokens") if attention == "plain" else (RoiTable, "find_bins")
    original = getattr(owner, crop)

    def counted(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(owner, crop, counted)
    detector = small_detector(name, attention=attention).eval()
    with torch.no_grad():
        detector(random_batch((64, 64)))
    assert len(calls) == (2 if detector.spec.is_sparse else 0)

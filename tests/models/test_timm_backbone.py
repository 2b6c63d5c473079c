from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.modules.batchnorm import _BatchNorm

from core.config.schema import BackboneConfig
from core.errors import CheckpointError, MachineError, UsageError
from core.models.backbone import build_backbone

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_absent_timm_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MachineError) as caught:
        build_backbone(BackboneConfig(name="timm/resnet18", weights=None), 3)
    assert "pip install 'dedetr[timm]'" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "resnet18"])
@pytest.mark.parametrize("num_levels", [1, 3])
def test_a_file_of_the_whole_network_loads_but_for_its_classifier(tmp_path, name, num_levels):
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    whole = timm.create_model(name, pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    config = BackboneConfig(name=f"timm/{name}", weights=str(tmp_path / "whole.safetensors"))
    backbone = build_backbone(config, num_levels).eval()
    assert backbone.strides == (8, 16, 32)[-num_levels:]
    with torch.no_grad():
        maps = backbone(PIXELS)
        expected = whole.forward_intermediates(PIXELS, intermediates_only=True)
    by_size = {tuple(each.shape[-2:]): each for each in expected}
    for stride, channels, feature in zip(backbone.strides, backbone.num_channels, maps, strict=True):
        assert feature.shape == (2, channels, 64 // stride, 96 // stride)
        torch.testing.assert_close(feature, by_size[tuple(feature.shape[-2:])], rtol=1e-4, atol=1e-4)


def test_a_file_of_another_network_is_refused(tmp_path):
    timm = pytest.importorskip("timm")
    state = timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict()
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="of another shape"):
        build_backbone(
            BackboneConfig(name="timm/mobilenetv3_small_075", weights=str(tmp_path / "other.safetensors")), 3
        )


@pytest.mark.parametrize("norm", ["frozen_batch_norm", "batch_norm"])
@pytest.mark.parametrize("freeze_stem", [True, False])
def test_what_is_trained(norm, freeze_stem):
    pytest.importorskip("timm")
    config = BackboneConfig(name="timm/mobilenetv3_small_050", weights=None, norm=norm, freeze_stem=freeze_stem)
    backbone = build_backbone(config, 3)
    backbone.eval()
    backbone.train()
    norms = [each for each in backbone.modules() if isinstance(each, _BatchNorm)]
    assert norms
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    sum(each.sum() for each in backbone(PIXELS)).backward()
    after = backbone.state_dict()
    changed = any(not torch.equal(after[key], before[key]) for key in after)
    assert changed == (norm == "batch_norm")
    if norm == "frozen_batch_norm":
        assert not any(each.weight.requires_grad or each.training for each in norms)
    frozen = {key for key, each in backbone.named_parameters() if not each.requires_grad and ".bn" not in key}
    if freeze_stem:
        assert "body.conv_stem.weight" in frozen
        assert all(key.startswith(("body.conv_stem", "body.blocks.0.")) for key in frozen)
    else:
        assert frozen == set()


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"name": "timm/mobilenetv3_smal_050"}, "backbone.name"),
        ({"name": "timm/vit_tiny_patch16_224"}, "backbone.name"),
        ({"name": "timm/swin_tiny_patch4_window7_224"}, "backbone.name"),
        ({"name": "timm/resnet18", "norm": "group_norm"}, "backbone.norm"),
        ({"name": "timm/resnet18", "dilation": True}, "backbone.dilation"),
        ({"name": "timm/resnet18", "weights": "IMAGENET1K_V1"}, "backbone.weights"),
        ({"name": "timm/densenet121", "freeze_stem": True}, "backbone.freeze_stem"),
    ],
)
def test_refuses_by_name(settings, where):
    pytest.importorskip("timm")
    with pytest.raises(UsageError) as caught:
        build_backbone(BackboneConfig(**{"weights": None, **settings}), 3)
    assert caught.value.where == where


def test_unknown_names_get_the_nearest():
    pytest.importorskip("timm")
    with pytest.raises(UsageError) as caught:
        build_backbone(BackboneConfig(name="timm/mobilenetv3_smal_050", weights=None), 3)
    assert "mobilenetv3_small_050" in str(caught.value.hint)

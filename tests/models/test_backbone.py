from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from core.config.schema import BackboneConfig
from core.errors import CheckpointError, MachineError, UsageError
from core.files import sha256_of
from core.models.backbone import build_backbone
from core.models.backbone_weights import fetch

PIXELS = torch.randn(2, 3, 65, 96, generator=torch.Generator().manual_seed(0))


def pretrained_resnet18() -> torchvision.models.ResNet:
    """Return torchvision's own network with statistics that matter."""
    torch.manual_seed(3)
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(pretrained_resnet18().state_dict(), file)
    return file


def expected_maps(pixels: torch.Tensor) -> list[torch.Tensor]:
    network, maps = pretrained_resnet18(), []
    for name, child in list(network.named_children())[:-2]:
        pixels = child(pixels)
        if name in ("layer2", "layer3", "layer4"):
            maps.append(pixels)
    return maps


@pytest.mark.parametrize("norm", ["frozen_batch_norm", "batch_norm"])
@pytest.mark.parametrize("num_levels", [1, 3])
def test_maps_are_torchvisions(weight_file, norm, num_levels):
    config = BackboneConfig(name="resnet18", weights=str(weight_file), norm=norm)
    backbone = build_backbone(config, num_levels).eval()
    with torch.no_grad():
        maps, expected = backbone(PIXELS), expected_maps(PIXELS)[-num_levels:]
    assert backbone.num_channels == (128, 256, 512)[-num_levels:]
    assert backbone.strides == (8, 16, 32)[-num_levels:]
    assert [each.shape[1] for each in maps] == list(backbone.num_channels)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_safetensors_and_wrapped_states_load_too(weight_file, tmp_path):
    state = torch.load(weight_file, weights_only=True)
    save_file(state, tmp_path / "resnet18.safetensors")
    torch.save({"state_dict": state}, tmp_path / "wrapped.pt")
    files = (weight_file, tmp_path / "resnet18.safetensors", tmp_path / "wrapped.pt")
    bodies = [build_backbone(BackboneConfig(name="resnet18", weights=str(file)), 3).state_dict() for file in files]
    for key, tensor in bodies[0].items():
        assert torch.equal(tensor, bodies[1][key])
        assert torch.equal(tensor, bodies[2][key])


def test_what_is_trained():
    config = BackboneConfig(name="resnet18", weights=None, norm="frozen_batch_norm", freeze_stem=True)
    backbone = build_backbone(config, 3).train()
    trained = {key for key, each in backbone.named_parameters() if each.requires_grad}
    assert trained
    assert all(key.startswith(("body.layer2", "body.layer3", "body.layer4")) for key in trained)
    norms = [each for each in backbone.modules() if isinstance(each, FrozenBatchNorm2d)]
    assert len(norms) == 20
    assert {each.eps for each in norms} == {1e-5}
    assert not any("bn" in key for key in trained)


def test_a_frozen_stem_keeps_its_statistics():
    config = BackboneConfig(name="resnet10", weights=None, freeze_stem=True)
    backbone = build_backbone(config, 3).train()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    sum(each.sum() for each in backbone(PIXELS)).backward()
    after = backbone.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert "body.layer2.0.bn1.running_mean" in changed
    assert not any(key.startswith(("body.bn1", "body.conv1", "body.layer1")) for key in changed)
    assert backbone.body["layer1"][0].conv1.weight.grad is None
    assert backbone.body["layer2"][0].bn1.weight.grad is not None


@pytest.mark.parametrize("norm", ["batch_norm", "group_norm"])
def test_from_scratch_signals_neither_vanish_nor_explode(norm):
    backbone = build_backbone(BackboneConfig(name="resnet10", weights=None, norm=norm, freeze_stem=False), 3).train()
    assert all(each.requires_grad for each in backbone.parameters())
    for feature in backbone(PIXELS):
        assert 0.1 < feature.std() < 10


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_dilation(name):
    backbone = build_backbone(BackboneConfig(name=name, weights=None, dilation=True), 3)
    assert backbone.strides == (8, 16, 16)
    with torch.no_grad():
        assert [tuple(each.shape[-2:]) for each in backbone(torch.zeros(1, 3, 64, 96))] == [(8, 12), (4, 6), (4, 6)]
    assert build_backbone(BackboneConfig(name=name, weights=None, dilation=True), 1).strides == (16,)


@pytest.mark.parametrize(
    ("settings", "where", "hint"),
    [
        ({"name": "resnet5O"}, "backbone.name", "resnet50"),
        ({"name": "vgg16"}, "backbone.name", "resnet10"),
        ({"weights": "IMAGENET1K_V3"}, "backbone.weights", "IMAGENET1K_V"),
        ({"name": "resnet10"}, "backbone.weights", "null"),
        ({"norm": "group_norm"}, "backbone.norm", "weights=null"),
        ({"name": "resnet10", "weights": None, "dilation": True}, "backbone.dilation", "50"),
        ({"name": "resnet18", "weights": None, "dilation": True}, "backbone.dilation", "50"),
        ({"name": "resnet34", "weights": None, "dilation": True}, "backbone.dilation", "50"),
    ],
)
def test_refuses_by_name(settings, where, hint):
    with pytest.raises(UsageError) as caught:
        build_backbone(BackboneConfig(**settings), 3)
    assert caught.value.where == where
    assert hint in str(caught.value.hint)


@pytest.fixture
def empty_cache(tmp_path):
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def test_missing_named_weights_are_not_fetched_unasked(empty_cache):
    with pytest.raises(MachineError) as caught:
        build_backbone(BackboneConfig(name="resnet18", weights="IMAGENET1K_V1"), 3)
    said = f"{caught.value} {caught.value.hint}"
    assert caught.value.where == "backbone.weights"
    assert str(empty_cache / "resnet18-f37072fd.pth") in said
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in said
    assert all(flag in said for flag in ("--download", "--backbone-weights FILE", "--backbone-weights none"))


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "DEFAULT"])
def test_named_weights_come_from_torchs_cache(empty_cache, weight_file, weights):
    empty_cache.mkdir(parents=True)
    shutil.copy(weight_file, empty_cache / "resnet18-f37072fd.pth")
    backbone = build_backbone(BackboneConfig(name="resnet18", weights=weights), 1)
    assert torch.equal(backbone.body["conv1"].weight, pretrained_resnet18().conv1.weight)


def test_downloads_are_checked_by_their_hash(tmp_path, weight_file):
    good = tmp_path / f"net-{sha256_of(weight_file)[:8]}.pth"
    fetch(weight_file.as_uri(), good)
    assert sha256_of(good) == sha256_of(weight_file)
    bad = tmp_path / "net-00000000.pth"
    with pytest.raises(MachineError, match="hash"):
        fetch(weight_file.as_uri(), bad)
    assert not bad.exists()
    with pytest.raises(MachineError, match="cannot download"):
        fetch((tmp_path / "absent.pth").as_uri(), tmp_path / "x-00000000.pth")


def test_a_file_of_another_network_is_refused_with_its_keys(weight_file, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        build_backbone(BackboneConfig(name="resnet34", weights=str(weight_file)), 3)
    assert "missing: layer1.2.conv1.weight" in str(caught.value)
    state = torch.load(weight_file, weights_only=True)
    state["layer9.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(8, 3, 7, 7)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as caught:
        build_backbone(BackboneConfig(name="resnet18", weights=str(tmp_path / "odd.pth")), 3)
    assert "1 unexpected: layer9.weight" in str(caught.value)
    assert "conv1.weight (file [8, 3, 7, 7], model [64, 3, 7, 7])" in str(caught.value)


def test_missing_and_damaged_files_are_checkpoint_errors(weight_file, tmp_path):
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(weight_file.read_bytes()[:100_000])
    no_tensors = tmp_path / "list.pth"
    torch.save([1, 2], no_tensors)
    for file in (truncated, no_tensors, tmp_path / "absent.pth"):
        with pytest.raises(CheckpointError) as caught:
            build_backbone(BackboneConfig(name="resnet18", weights=str(file)), 3)
        assert caught.value.where == str(file)

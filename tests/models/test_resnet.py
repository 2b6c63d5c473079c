"""ResNets with folded norms against torchvision's own."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

from core.models.resnet import ARCHITECTURES, build_resnet, normed


def test_the_table_names_all_of_torchvisions_resnets():
    assert set(ARCHITECTURES) == {"resnet10"} | {
        name for name in torchvision.models.list_models() if name in resnet.__all__
    }


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"resnet10"}))
def test_parts_have_torchvisions_names_and_shapes(name):
    with torch.device("meta"):
        ours, theirs = build_resnet(name, "batch_norm", dilation=False), torchvision.models.get_model(name)
    shapes = [{key: tensor.shape for key, tensor in each.state_dict().items()} for each in (ours, theirs)]
    assert shapes[0] == shapes[1]


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for buffer, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                buffer.copy_(low + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return network


@pytest.mark.parametrize(
    ("name", "dilation"), [("resnet18", False), ("resnet50", False), ("resnet50", True), ("resnext50_32x4d", False)]
)
def test_folding_changes_neither_features_nor_gradients(name, dilation):
    torch.manual_seed(0)
    ours = randomised(build_resnet(name, "frozen_batch_norm", dilation).double())
    theirs = torchvision.models.get_model(
        name, norm_layer=FrozenBatchNorm2d, replace_stride_with_dilation=[False, False, dilation]
    ).double()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(2, 3, 37, 50, dtype=torch.float64)
    answers = []
    for network in (ours, theirs):
        stem = normed(ours.conv1, ours.bn1, pixels) if network is ours else theirs.bn1(theirs.conv1(pixels))
        current = stem.relu()
        for part in (network.layer1, network.layer2, network.layer3, network.layer4):
            current = part(current)
        current.square().mean().backward()
        answers.append([current, *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)])
    assert len(answers[0]) > 15
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.GroupNorm(2, 6)])
def test_other_norms_are_not_folded(norm):
    convolution, features = nn.Conv2d(3, 6, 3), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(normed(convolution, norm, features), copy.deepcopy(norm)(convolution(features)))


def test_folding_under_autocast_keeps_half_precision():
    convolution, norm = nn.Conv2d(3, 6, 3, bias=False), FrozenBatchNorm2d(6)
    with torch.autocast("cpu", torch.bfloat16):
        assert normed(convolution, norm, torch.randn(2, 3, 8, 8)).dtype == torch.bfloat16

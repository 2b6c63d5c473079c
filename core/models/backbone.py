"""Convolutional networks that images pass first: torchvision's ResNets here, timm's in `timm_backbone`."""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet

from core.config.schema import BackboneConfig
from core.errors import UsageError, nearest
from core.models.backbone_weights import load_torchvision_weights
from core.models.freezing import Freezable
from core.models.resnet import ARCHITECTURES, BasicBlock, build_resnet, normed

_STAGES = ("layer2", "layer3", "layer4")

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Backbone(Freezable):
    """Makes feature maps of images.

    Args:
        num_channels: of each map.
        strides: of each map, image pixels from one cell to the next.
        pixel_mean: of each channel of the images it was trained on, for pixels in [0, 1].
        pixel_std: likewise.
    """

    def __init__(
        self,
        num_channels: tuple[int, ...],
        strides: tuple[int, ...],
        pixel_mean: Triple = IMAGENET_MEAN,
        pixel_std: Triple = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.strides = strides
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std

    @abstractmethod
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> per level (B, C, H / stride, W / stride), rounded as the network does; the finest first."""


class ResNetBackbone(Backbone):
    """A torchvision ResNet without its classifier.

    Args:
        network: the ResNet.
        num_levels: how many of its last stages give a map: 1 (C5) or 3 (C3, C4, C5).
        dilation: whether its last stage keeps the stride of the one before.
    """

    def __init__(self, network: resnet.ResNet, num_levels: int, dilation: bool) -> None:
        deepest = network.fc.in_features
        strides = (8, 16, 16 if dilation else 32)
        super().__init__((deepest // 4, deepest // 2, deepest)[-num_levels:], strides[-num_levels:])
        children = dict(network.named_children())
        self.body = nn.ModuleDict({name: part for name, part in children.items() if name not in ("avgpool", "fc")})
        self.taps = _STAGES[-num_levels:]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        # On CPUs convolutions are much faster this way; results differ by rounding alone.
        current = pixels.contiguous(memory_format=torch.channels_last)
        body = self.body
        current = body["maxpool"](F.relu_(normed(cast(nn.Conv2d, body["conv1"]), body["bn1"], current)))
        features = []
        for name in ("layer1", *_STAGES):
            current = body[name](current)
            if name in self.taps:
                features.append(current)
        return features


def build_backbone(config: BackboneConfig, num_levels: int, *, download: bool = False) -> Backbone:
    """Return a backbone with its weights loaded.

    Args:
        config: name, weights, norm, and what stays frozen.
        num_levels: 1 for a map of stride 32 alone (16 with dilation), 3 for strides 8, 16 and 32.
        download: fetch torchvision's weights if they are not in its cache.

    Raises:
        UsageError: unknown name, or settings that do not go together.
        MachineError: timm is not installed, or the weights are not on this machine and may not be fetched.
        CheckpointError: a weight file is damaged or of another network.
    """
    if config.name.startswith("timm/"):
        from core.models.timm_backbone import build_timm_backbone

        return build_timm_backbone(config, num_levels)
    backbone = ResNetBackbone(_build_resnet(config), num_levels, config.dilation)
    if config.weights is not None:
        if config.norm == "group_norm":
            raise UsageError(
                "pretrained weights are made for batch norm and do not fit group norm",
                where="backbone.norm",
                hint="set backbone.weights=null to train from scratch, or use backbone.norm=frozen_batch_norm",
            )
        load_torchvision_weights(backbone.body, config.name, config.weights, download=download)
    if config.freeze_stem:
        for name in ("conv1", "bn1", "layer1"):
            backbone.freeze(backbone.body[name])
    return backbone


def _build_resnet(config: BackboneConfig) -> resnet.ResNet:
    if config.name not in ARCHITECTURES:
        raise UsageError(
            f"unknown backbone '{config.name}'",
            where="backbone.name",
            hint=f"{nearest(config.name, list(ARCHITECTURES))} timm's networks are named timm/NAME",
        )
    if config.dilation and ARCHITECTURES[config.name].block is BasicBlock:
        raise UsageError(
            f"{config.name} cannot be dilated",
            where="backbone.dilation",
            hint="use a ResNet of 50 or more layers, or backbone.dilation=false",
        )
    return build_resnet(config.name, config.norm, config.dilation)

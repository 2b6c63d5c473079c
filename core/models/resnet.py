"""torchvision's ResNets, with frozen batch norm folded into the convolution before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen_batch_norm": FrozenBatchNorm2d,
    "batch_norm": nn.BatchNorm2d,
    "group_norm": partial(nn.GroupNorm, 32),
}


def normed(convolution: nn.Conv2d, norm: nn.Module, features: Tensor) -> Tensor:
    """Convolve and normalise; (B, C, H, W) -> (B, C', H', W').

    A frozen batch norm is a fixed scale and shift. It is taken into the weight, which gives the same numbers to
    rounding, without two more passes over the features and one over their gradient.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        normalised: Tensor = norm(convolution(features))
        return normalised
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return F.conv2d(
        features,
        convolution.weight * scale[:, None, None, None],
        norm.bias - norm.running_mean * scale,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )


class BasicBlock(resnet.BasicBlock):  # type: ignore[misc]  # torchvision has no types
    """Two convolutions beside a shortcut (He et al. 2016, figure 5 left)."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        inner = F.relu_(normed(self.conv1, self.bn1, features))
        return _join(normed(self.conv2, self.bn2, inner), self.downsample, features)


class Bottleneck(resnet.Bottleneck):  # type: ignore[misc]
    """Three convolutions, the outer ones 1 x 1, beside a shortcut (He et al. 2016, figure 5 right)."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        inner = F.relu_(normed(self.conv1, self.bn1, features))
        inner = F.relu_(normed(self.conv2, self.bn2, inner))
        return _join(normed(self.conv3, self.bn3, inner), self.downsample, features)


def _join(inner: Tensor, shortcut: nn.Sequential | None, features: Tensor) -> Tensor:
    """Add what a block has made of its features to the features themselves."""
    if shortcut is not None:
        features = normed(cast(nn.Conv2d, shortcut[0]), shortcut[1], features)
    return F.relu_(inner.add_(features))


class _Architecture(NamedTuple):
    block: type[BasicBlock] | type[Bottleneck]
    num_blocks: Sequence[int]
    groups: int = 1
    width_per_group: int = 64


ARCHITECTURES = {
    "resnet10": _Architecture(BasicBlock, (1, 1, 1, 1)),
    "resnet18": _Architecture(BasicBlock, (2, 2, 2, 2)),
    "resnet34": _Architecture(BasicBlock, (3, 4, 6, 3)),
    "resnet50": _Architecture(Bottleneck, (3, 4, 6, 3)),
    "resnet101": _Architecture(Bottleneck, (3, 4, 23, 3)),
    "resnet152": _Architecture(Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": _Architecture(Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": _Architecture(Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": _Architecture(Bottleneck, (3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": _Architecture(Bottleneck, (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": _Architecture(Bottleneck, (3, 4, 23, 3), width_per_group=128),
}
"""By torchvision's name, and resnet10, which it does not have."""


def build_resnet(name: str, norm: str, dilation: bool) -> resnet.ResNet:
    """Return a ResNet of `ARCHITECTURES`, as it starts training, with torchvision's names of its parts.

    Args:
        name: of the architecture.
        norm: a key of `NORMS`.
        dilation: its last stage dilates and keeps its stride, for networks of bottlenecks only.
    """
    architecture = ARCHITECTURES[name]
    return resnet.ResNet(
        architecture.block,
        list(architecture.num_blocks),
        groups=architecture.groups,
        width_per_group=architecture.width_per_group,
        norm_layer=NORMS[norm],
        replace_stride_with_dilation=[False, False, dilation],
    )

"""Backbones from timm, with weights from local files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.config.schema import BackboneConfig
from core.errors import MachineError, UsageError, nearest
from core.models.backbone import Backbone, Triple
from core.models.backbone_weights import is_weight_file
from core.models.weight_files import find_state, load_exactly, read_weight_file

_FIRST_STAGES = ("blocks", "stages", "layer1", "blocks_0", "stages_0", "s1")
"""Names that timm gives to the first stage, or to the list whose first entry it is."""


class TimmBackbone(Backbone):
    """A timm network that gives feature maps.

    Args:
        body: made by `timm.create_model(features_only=True)`.
        num_channels: of each map.
        strides: of each map.
        pixel_mean: see `Backbone`.
        pixel_std: see `Backbone`.
    """

    def __init__(
        self,
        body: nn.Module,
        num_channels: tuple[int, ...],
        strides: tuple[int, ...],
        pixel_mean: Triple,
        pixel_std: Triple,
    ) -> None:
        super().__init__(num_channels, strides, pixel_mean, pixel_std)
        self.body = body

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        return list(self.body(pixels))


def build_timm_backbone(config: BackboneConfig, num_levels: int) -> Backbone:
    """Return a timm network with its weights loaded; see `build_backbone`."""
    timm = _import_timm()
    name = config.name.removeprefix("timm/")
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise UsageError(f"timm has no network '{name}'", where="backbone.name", hint=_shorten(hint))
    _check_switches(config)
    wanted = (8, 16, 32)[-num_levels:]
    body = _create(timm, name, wanted)
    info = body.feature_info
    trained_with = timm.models.get_pretrained_cfg(name)
    backbone = TimmBackbone(
        body, tuple(info.channels()), tuple(info.reduction()), tuple(trained_with.mean), tuple(trained_with.std)
    )
    if config.weights is not None:
        _load(backbone.body, timm, name, config.weights)
    if config.norm == "frozen_batch_norm":
        for module in body.modules():
            if isinstance(module, _BatchNorm):
                backbone.freeze(module)
    if config.freeze_stem:
        for module in _stem_of(body, name):
            backbone.freeze(module)
    return backbone


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MachineError(
            "timm is not installed", where="backbone.name", hint="python -m pip install 'dedetr[timm]'"
        ) from error
    return timm


def _shorten(hint: str) -> str:
    """Keep a hint that would list more than a thousand names readable."""
    return hint if len(hint) < 200 else "see timm.list_models()"


def _check_switches(config: BackboneConfig) -> None:
    if config.norm == "group_norm":
        raise UsageError(
            "timm's networks come with norms of their own",
            where="backbone.norm",
            hint="use frozen_batch_norm or batch_norm",
        )
    if config.dilation:
        raise UsageError(
            "dilation is for torchvision's ResNets", where="backbone.dilation", hint="set backbone.dilation=false"
        )
    if config.weights is not None and not is_weight_file(config.weights):
        raise UsageError(
            f"'{config.weights}' is no file, and timm's weights are read from files alone",
            where="backbone.weights",
            hint="give a .safetensors or .pth file, or null to train from scratch",
        )


def _create(timm: Any, name: str, wanted: tuple[int, ...]) -> Any:
    """Return the network with one output for each wanted stride."""
    try:
        strides = list(timm.create_model(name, features_only=True, pretrained=False).feature_info.reduction())
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"timm/{name} cannot give feature maps: {error}", where="backbone.name") from error
    if not set(wanted) <= set(strides):
        raise UsageError(
            f"timm/{name} has maps of strides {strides}, but {list(wanted)} are needed",
            where="backbone.name",
            hint="use a network with a map at each of these strides",
        )
    indices = tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in wanted)
    body = timm.create_model(name, features_only=True, pretrained=False, out_indices=indices)
    layout = str(getattr(body, "output_fmt", "NCHW"))
    if "NCHW" not in layout.upper():
        raise UsageError(f"timm/{name} gives maps as {layout}, not channels first", where="backbone.name")
    return body


def _load(body: nn.Module, timm: Any, name: str, weights: str) -> None:
    """Load a file of the whole network; what only its classifier uses is left out.

    timm writes `stages_0` for `stages.0` where it cuts a network into stages, so keys are compared without that.
    """
    file = Path(weights)
    state = find_state(read_weight_file(file), file)
    by_plain_key = {_plain(key): key for key in body.state_dict()}
    renamed = {by_plain_key.get(_plain(key), key): tensor for key, tensor in state.items()}
    if set(renamed) - set(by_plain_key.values()):
        whole = timm.create_model(name, pretrained=False).state_dict()
        renamed = {key: tensor for key, tensor in renamed.items() if _plain(key) in by_plain_key or key not in whole}
    load_exactly(body, renamed, where=str(file), hint=f"give weights of timm's {name}")


def _plain(key: str) -> str:
    return key.replace(".", "_")


def _stem_of(body: nn.Module, name: str) -> list[nn.Module]:
    """Return everything up to and with the first stage."""
    stem: list[nn.Module] = []
    for child_name, child in body.named_children():
        if child_name in ("blocks", "stages"):
            return [*stem, next(child.children())]
        stem.append(child)
        if child_name in _FIRST_STAGES:
            return stem
    raise UsageError(
        f"the first stage of timm/{name} cannot be told from the rest",
        where="backbone.freeze_stem",
        hint="set backbone.freeze_stem=false",
    )

"""The reference's checkpoints in our words: key names, the number of classes, and the configuration they need."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from core.annotations.layouts import CITYSCAPES_CLASSES
from core.annotations.records import Category
from core.config.schema import BackboneConfig, ModelConfig, Section
from core.errors import CheckpointError
from core.models.specs import DecoderFamily

_SectionT = TypeVar("_SectionT", bound=Section)

_RENAMES = (
    (re.compile(r"^backbone\.0\."), "backbone."),
    (re.compile(r"^backbone\.1\."), "position_embedding."),
    (re.compile(r"^transformer\."), ""),
    # The detector and its decoder share the heads; ours stand in the decoder alone.
    (re.compile(r"^(class_embed|bbox_embed|ref_point_head)\."), r"decoder.\1."),
    # The dense models have one head for all layers and one input projection.
    (re.compile(r"^decoder\.(class_embed|bbox_embed)\.(?!\d)"), r"decoder.\1.0."),
    (re.compile(r"^input_proj\.(?!\d)"), "input_proj.0.0."),
)
_HEAD_INDEX = re.compile(r"^(decoder\.(?:class_embed|bbox_embed))\.\d+\.")


def is_reference_state(keys: Iterable[str]) -> bool:
    """Tell a reference state from ours by its keys."""
    return any(key.startswith("transformer.") for key in keys)


def from_reference_key(key: str) -> str:
    """Return our name of a reference parameter (with per-layer heads; see `from_reference_state`)."""
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def from_reference_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a reference state under our names, every tensor once.

    Raises:
        CheckpointError: two names of what should be one tensor hold different numbers.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        our_key = from_reference_key(key)
        if our_key in renamed and not torch.equal(renamed[our_key], tensor):
            raise CheckpointError(f"'{key}' differs from the other copy of the same tensor in this checkpoint")
        renamed[our_key] = tensor
    return renamed


def share_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the first of a renamed state's per-layer heads: without box refinement the others are the same.

    Raises:
        CheckpointError: they are not the same.
    """
    shared: dict[str, Tensor] = {}
    for key, tensor in state.items():
        first = _HEAD_INDEX.sub(r"\1.0.", key)
        if first in shared and not torch.equal(shared[first], tensor):
            raise CheckpointError(f"'{key}' differs from the first layer's, but this model has one head for all layers")
        shared[first] = tensor
    return shared


def reference_family(state: Mapping[str, Tensor]) -> DecoderFamily:
    """Return which decoder a reference state is of."""
    is_conditional = any(".sa_qcontent_proj." in key for key in state)
    return DecoderFamily.CONDITIONAL if is_conditional else DecoderFamily.DETR


def reference_num_classes(state: Mapping[str, Tensor], family: DecoderFamily) -> int:
    """Return C of a reference state's own head: the largest category id + 1, as it uses raw ids as labels.

    Raises:
        CheckpointError: the state has no class head.
    """
    num_logits = len(_require(from_reference_state(state), "decoder.class_embed.0.weight"))
    return num_logits - 1 if family is DecoderFamily.DETR else num_logits


def reference_class_names(num_classes: int) -> dict[int, str]:
    """Return the names of a reference head's rows, as far as they are known.

    Cityscapes has 9 rows, id 0 unused; COCO 91, with gaps in its ids.
    """
    if num_classes == len(CITYSCAPES_CLASSES) + 1:
        return dict(enumerate(CITYSCAPES_CLASSES, start=1))
    coco = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if num_classes == len(coco):
        return {row: name for row, name in enumerate(coco) if name not in ("__background__", "N/A")}
    return {}


def reference_classes(num_classes: int) -> tuple[Category, ...]:
    """Return the classes of a reference head, whose category id is the row; unknown names are `category N`."""
    names = reference_class_names(num_classes)
    return tuple(Category(row, names.get(row, f"category {row}")) for row in range(num_classes))


def reference_model_config(args: Mapping[str, Any], state: Mapping[str, Tensor]) -> ModelConfig:
    """Return the configuration of the model that a reference checkpoint holds.

    Tensor shapes tell what they can; the rest comes from the training flags, or is the reference's default.

    Args:
        args: the checkpoint's training flags, perhaps none.
        state: its weights, under the reference's names.

    Raises:
        CheckpointError: a tensor that every model has is missing, or the model is one that we do not have.
    """
    _refuse_foreign(args, state)
    family = reference_family(state)
    is_sparse = "transformer.decoder.bbox_embed.0.layers.0.weight" in state
    ours = from_reference_state(state)
    num_queries, hidden_dim = _require(ours, "query_embed.weight").shape
    settings: dict[str, Any] = {}
    if is_sparse:
        is_repeated = args.get("repeat_label") is not None or args.get("repeat_ratio") is not None
        settings["num_feature_levels"] = _count(ours, "input_proj")
        settings["roi_resolution"] = args.get("pool_res", 4)
        settings["box_refinement"] = args.get("box_refine", True)
        if family is DecoderFamily.DETR:
            settings["reference_dim"] = len(_require(ours, "decoder.ref_point_head.layers.1.weight"))
        prefix = "dela-" if is_repeated else "de-"
    else:
        prefix = ""
    if not args.get("ms_roi", True) and settings.get("num_feature_levels", 1) > 1:
        raise CheckpointError("single-scale RoIs chosen among several feature levels are not supported")
    settings |= {
        "name": prefix + ("detr" if family is DecoderFamily.DETR else "conddetr"),
        "hidden_dim": hidden_dim,
        "num_heads": args.get("nheads", 8),
        "num_encoder_layers": _count(ours, "encoder.layers"),
        "num_decoder_layers": _count(ours, "decoder.layers"),
        "feedforward_dim": len(_require(ours, "decoder.layers.0.linear1.weight")),
        "dropout": args.get("dropout", 0.1),
        "num_queries": num_queries,
        "position_embedding": "learned" if "position_embedding.row_embed.weight" in ours else "sine",
        "pre_norm": "encoder.norm.weight" in ours,
    }
    return _validated(ModelConfig, settings)


def reference_backbone_config(args: Mapping[str, Any]) -> BackboneConfig:
    """Return the backbone of a reference checkpoint; its weights are in the checkpoint.

    The reference always freezes batch norm and the stem. With dilation (DC5) it crops RoIs as if the last stride were
    32; ours takes the real one, 16.
    """
    settings = {
        "name": args.get("backbone", "resnet50"),
        "weights": None,
        "norm": "frozen_batch_norm",
        "freeze_stem": True,
        "dilation": args.get("dilation", False),
    }
    return _validated(BackboneConfig, settings)


def _validated(section: type[_SectionT], settings: Mapping[str, Any]) -> _SectionT:
    """Build a section from values that come out of a file."""
    try:
        return section(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"the reference's flags make no model of ours: {name}: {first['msg']}") from error


def _refuse_foreign(args: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    if args.get("masks") or args.get("frozen_weights") or any("mask_head" in key for key in state):
        raise CheckpointError("mask heads, panoptic models and --frozen_weights of the reference are not supported")


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many numbered modules there are below a prefix."""
    depth = prefix.count(".") + 1
    return len({key.split(".")[depth] for key in state if key.startswith(prefix + ".")})


def _require(state: Mapping[str, Tensor], key: str) -> Tensor:
    try:
        return state[key]
    except KeyError:
        raise CheckpointError(f"there is no '{key}', so this is no detector of the reference") from None

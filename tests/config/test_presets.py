"""Every preset of the paper, field by field, against what was published; and the other presets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from core.config.layers import assignments_layer, items_layer, resolve
from core.config.presets import preset_layer, preset_names
from core.config.schema import Config
from core.errors import UsageError
from core.models.specs import SPECS, get_spec

# Typed from the paper's tables and the training commands of the reference: queries, times each label appears, NMS,
# weight (and matching cost) of the class. The schedule of all but DETR on Cityscapes is 50 epochs, drop after 40.
MODELS: dict[str, tuple[int, int | None, bool, float]] = {
    "detr": (100, None, False, 1.0),
    "de-detr": (100, None, False, 1.0),
    "dela-detr": (300, 2, True, 1.0),
    "conddetr": (300, None, False, 2.0),
    "de-conddetr": (300, None, False, 2.0),
    "dela-conddetr": (300, 2, True, 2.0),
}
# Images in a batch, and the share of the training images.
DATA: dict[str, tuple[int, str | None]] = {
    "cityscapes": (8, None),
    "coco": (32, None),
    "coco-1": (8, "0.01"),
    "coco-2": (8, "0.02"),
    "coco-5": (8, "0.05"),
    "coco-10": (8, "0.1"),
}
COMMON: dict[str, Any] = {
    "model.hidden_dim": 256,
    "model.num_heads": 8,
    "model.num_encoder_layers": 6,
    "model.num_decoder_layers": 6,
    "model.feedforward_dim": 2048,
    "model.dropout": 0.1,
    "model.position_embedding": "sine",
    "model.pre_norm": False,
    "model.num_feature_levels": 3,
    "model.roi_resolution": 4,
    "model.box_refinement": True,
    "model.reference_dim": 2,
    "backbone.name": "resnet50",
    "backbone.weights": "IMAGENET1K_V1",
    "backbone.norm": "frozen_batch_norm",
    "backbone.freeze_stem": True,
    "backbone.dilation": False,
    "label_augmentation.repeat_ratio": None,
    "label_augmentation.two_stage_match": False,
    "loss.l1_weight": 5.0,
    "loss.giou_weight": 2.0,
    "loss.l1_cost": 5.0,
    "loss.giou_cost": 2.0,
    "loss.no_object_weight": 0.1,
    "loss.focal_alpha": 0.25,
    "loss.auxiliary": True,
    "postprocess.nms_iou": 0.7,
    "postprocess.suppressed_score_factor": 0.01,
    "postprocess.num_candidates": 2000,
    "postprocess.max_detections": 100,
    "data.short_side": 800,
    "data.max_long_side": 1333,
    "data.sample_repeat": 1,
    "data.augment": True,
    "data.allow_more_labels_than_queries": True,
    "optimizer.lr": 1e-4,
    "optimizer.backbone_lr": 1e-5,
    "optimizer.weight_decay": 1e-4,
    "optimizer.clip_norm": 0.1,
    "optimizer.accumulate": 1,
    "optimizer.ema_decay": None,
    "optimizer.freeze": [],
    "schedule.steps": None,
    "schedule.kind": "step",
    "schedule.lr_drop_step": None,
    "schedule.lr_drop_factor": 0.1,
    "schedule.warmup_steps": 0,
    "schedule.patience": None,
    "run.seed": 42,
    "run.precision": "float32",
}
# What says nothing about the experiment: where it runs, and how often it writes.
NOT_PUBLISHED = {
    "model.roi_backend", "model.attention", "data.root", "data.num_workers", "data.cache", "data.on_invalid",
    "schedule.final_lr_factor",
    "run.device", "run.eval_every", "run.checkpoint_every", "run.keep_checkpoints", "run.log_every", "run.compile",
    "run.loggers", "run.num_logged_images", "run.evaluator", "run.checkpoint_minutes", "run.checkpoint_share",
    "run.background_saves",
}  # fmt: skip

PAPER = [f"paper/{data}/{model}" for data in DATA for model in MODELS]


def resolved(preset: str, *assignments: str, model: str | None = None) -> Config:
    """Return what `dedetr train --preset ... --set ... --model ...` would train."""
    flags = {("model", "name"): model} if model else {}
    layers = [preset_layer(preset), assignments_layer(assignments), items_layer(flags, {}, "flag")]
    return resolve(layers, lambda name: get_spec(name).config_defaults()).config


def flat(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{key}": value for section, values in config.model_dump().items() for key, value in values.items()
    }


def test_there_is_a_preset_for_every_published_row() -> None:
    assert set(MODELS) == set(SPECS)
    assert len(PAPER) == 36
    assert [name for name in preset_names() if name.startswith("paper/")] == sorted(PAPER)
    assert preset_names() == sorted(preset_names())


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_of_the_paper_is_what_was_published(name: str) -> None:
    _, data, model = name.split("/")
    num_queries, repeat_time, nms, class_weight = MODELS[model]
    batch_size, subset = DATA[data]
    is_long = (data, model) == ("cityscapes", "detr")
    expected = COMMON | {
        "model.name": model,
        "model.num_queries": num_queries,
        "label_augmentation.repeat_time": repeat_time,
        "loss.class_weight": class_weight,
        "loss.class_cost": class_weight,
        "postprocess.nms": nms,
        "data.batch_size": batch_size,
        "data.subset": subset,
        "schedule.epochs": 300 if is_long else 50,
        "schedule.lr_drop_epoch": 200 if is_long else 40,
    }
    found = flat(resolved(name))
    assert {key: value for key, value in found.items() if key not in NOT_PUBLISHED} == expected


@pytest.mark.parametrize("data", DATA)
def test_a_model_named_beside_a_preset_brings_its_own_row(data: str) -> None:
    for first, second in itertools.permutations(MODELS, 2):
        assert resolved(f"paper/{data}/{first}", model=second) == resolved(f"paper/{data}/{second}")


def test_flags_go_over_a_preset() -> None:
    config = resolved("paper/coco-1/dela-detr", "label_augmentation.repeat_ratio=0.25", "data.subset=0.02")
    assert (config.label_augmentation.repeat_time, config.label_augmentation.repeat_ratio) == (None, 0.25)
    assert config.data.subset == "0.02"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("paper/coco/dela-der", "did you mean 'paper/coco/dela-detr'?"),
        ("coco/detr", "did you mean 'paper/coco/detr'?"),
        ("smal", "did you mean 'small'?"),
        ("xyz", "known: demo, scratch, small, paper/DATA/MODEL"),
    ],
)
def test_an_unknown_preset_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"unknown preset '{name}'") as caught:
        preset_layer(name)
    assert caught.value.hint == hint


def test_from_scratch_everything_trains_at_one_rate() -> None:
    config = resolved("scratch")
    assert config.backbone.weights is None
    assert (config.backbone.norm, config.backbone.freeze_stem) == ("batch_norm", False)
    assert config.optimizer.backbone_lr == config.optimizer.lr
    assert config.schedule.kind == "cosine"
    assert config.schedule.warmup_steps > 0

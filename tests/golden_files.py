"""The recorded runs of the reference implementations under tests/golden (see the README there)."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from core.config.schema import LabelAugmentationConfig, LossConfig, ModelConfig, PostprocessConfig
from core.models.backbone import Backbone
from core.models.detector import Detector, build_detector
from core.models.reference_keys import from_reference_state
from core.models.specs import DecoderFamily, ModelSpec, get_spec
from core.structures import ImageBatch, ModelOutput, Target

FOLDER = Path(__file__).parent / "golden"
GOLDEN_NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.npz")))
Attention = Literal["fast", "plain"]
TARGET_SETS = ("A", "B", "C", "D")


class RecordedBackbone(Backbone):
    """Answers every batch with the features that the reference's detector was fed."""

    def __init__(self, features: list[Tensor], strides: tuple[int, ...]) -> None:
        super().__init__(num_channels=tuple(feature.shape[1] for feature in features), strides=strides)
        self.features = features

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [feature.to(pixels.dtype) for feature in self.features]


class Golden:
    """One recorded variant: its configuration in our words, its inputs, and what the reference answered."""

    def __init__(self, name: str) -> None:
        self.name = name
        with np.load(FOLDER / f"{name}.npz") as archive:
            self.arrays: dict[str, np.ndarray[Any, Any]] = {key: archive[key] for key in archive.files}
        self.meta: dict[str, Any] = json.loads(str(self.arrays["meta_json"]))
        self.args: dict[str, Any] = self.meta["args"]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.arrays if key.startswith(prefix)]

    def array(self, key: str) -> np.ndarray[Any, Any]:
        return self.arrays[key]

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key].copy())

    @property
    def num_classes(self) -> int:
        return int(self.meta["num_classes"])

    @cached_property
    def model_config(self) -> ModelConfig:
        args = self.args
        repeated = args["repeat_label"] is not None or args["repeat_ratio"] is not None
        code = self.meta["code"]
        return ModelConfig(
            name=code.replace("de-", "dela-") if repeated else code,
            hidden_dim=args["hidden_dim"],
            num_heads=args["nheads"],
            num_encoder_layers=args["enc_layers"],
            num_decoder_layers=args["dec_layers"],
            feedforward_dim=args["dim_feedforward"],
            dropout=args["dropout"],
            num_queries=args["num_queries"],
            position_embedding=args["position_embedding"],
            pre_norm=args["pre_norm"],
            num_feature_levels=args.get("num_feature_levels", 3),
            roi_resolution=args.get("pool_res", 4),
            box_refinement=args.get("box_refine", True),
            reference_dim=args.get("init_ref_dim", 2),
        )

    @property
    def spec(self) -> ModelSpec:
        return get_spec(self.model_config.name)

    @property
    def loss_config(self) -> LossConfig:
        args = self.args
        return LossConfig(
            class_weight=float(self.meta["weight_dict"]["loss_ce"]),
            l1_weight=float(args["bbox_loss_coef"]),
            giou_weight=float(args["giou_loss_coef"]),
            class_cost=float(args["set_cost_class"]),
            l1_cost=float(args["set_cost_bbox"]),
            giou_cost=float(args["set_cost_giou"]),
            no_object_weight=float(args.get("eos_coef", 0.1)),
            focal_alpha=float(args.get("focal_alpha", 0.25)),
            auxiliary=args["aux_loss"],
        )

    @property
    def label_augmentation_config(self) -> LabelAugmentationConfig:
        args = self.args
        return LabelAugmentationConfig(
            repeat_time=args["repeat_label"],
            repeat_ratio=args["repeat_ratio"],
            two_stage_match=args["two_stage_match"],
        )

    @property
    def postprocess_config(self) -> PostprocessConfig:
        args = self.args
        return PostprocessConfig(
            nms=args["nms"],
            nms_iou=args["nms_thresh"],
            suppressed_score_factor=args.get("nms_remove", 0.01),
            num_candidates=args.get("pre_nms", 2000),
        )

    @property
    def sizes_hw(self) -> Tensor:
        return self.tensor("in/size")

    @property
    def original_sizes_hw(self) -> Tensor:
        """(B, 2) height and width that the recorded post-processing scaled boxes to."""
        return 5 * self.sizes_hw

    def batch(self) -> ImageBatch:
        """Return the recorded padding around empty pixels: the features are recorded, not computed."""
        mask = self.tensor("in/image_mask")
        return ImageBatch(torch.zeros(len(mask), 3, *mask.shape[1:]), mask, self.sizes_hw)

    def backbone(self) -> RecordedBackbone:
        features = [self.tensor(key) for key in sorted(self.keys("in/feat"))]
        return RecordedBackbone(features, strides=(8, 16, 32)[-len(features) :])

    def reference_state(self, *, aliases: bool = False) -> dict[str, Tensor]:
        """Return the reference's weights under its own keys, each shared tensor once or under all its names."""
        state = {key.removeprefix("sd/"): self.tensor(key) for key in self.keys("sd/")}
        if aliases:
            state |= {alias: state[key] for alias, key in self.meta["alias"].items()}
        return state

    def detector(self, attention: Attention = "plain") -> Detector:
        """Return our detector with the reference's weights, in eval mode."""
        config = self.model_config.model_copy(update={"attention": attention})
        detector = build_detector(config, self.backbone(), self.num_classes)
        detector.load_state_dict(from_reference_state(self.reference_state()))
        return detector.eval()

    def targets(self, target_set: str) -> list[Target]:
        """Return the targets of set A, B, C or D, as they were before augmentation."""
        prefixes = [f"tgt/{target_set}/{image}" for image in range(len(self.sizes_hw))]
        return [Target(self.tensor(f"{prefix}/boxes"), self.tensor(f"{prefix}/labels")) for prefix in prefixes]

    def output(self) -> ModelOutput:
        """Return what the reference's detector answered, decoder layer by decoder layer."""
        return ModelOutput(self.tensor("out/pred_logits"), self.tensor("out/pred_boxes"))

    @property
    def is_softmax(self) -> bool:
        return self.spec.family is DecoderFamily.DETR

"""The configuration of a training run: every key, its type, its range and its default, and nothing else.

Sections are strict and frozen: an unknown key, a wrong type or a value out of range is an error. What
differs from model to model (queries, epochs, repeated labels, ...) is laid over these defaults by the
model's row in `core.models.specs`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _as_text(value: object) -> object:
    """Let a number stand for its text: `0.05` in a file means what `--subset 0.05` means."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(value) if is_number else value


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelConfig(Section):
    """The architecture. Everything here is fixed by the checkpoint in `eval` and `predict`."""

    name: str = "dela-detr"
    hidden_dim: PositiveInt = 256
    num_heads: PositiveInt = 8
    num_encoder_layers: NonNegativeInt = 6
    num_decoder_layers: PositiveInt = 6
    feedforward_dim: PositiveInt = 2048
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    num_queries: PositiveInt = 100
    position_embedding: Literal["sine", "learned"] = "sine"
    pre_norm: bool = False
    """Normalise before each block instead of after it: DETR only, as in the reference."""
    num_feature_levels: Literal[1, 3, 4] = 3
    """Levels that RoIs are cropped from (sparse models): 1 is stride 32 alone; 4 adds stride 64."""
    roi_resolution: PositiveInt = 4
    """Bins along each side of a RoI; a query attends to levels x resolution^2 tokens."""
    box_refinement: bool = True
    """Each layer refines the previous layer's box (sparse models)."""
    reference_dim: Literal[2, 4] = 2
    """Initial reference: a centre (2) or a box (4); 4 with DETR's decoder only."""
    roi_backend: Literal["torchvision", "detectron2"] = "torchvision"
    """Whose RoIAlign crops the features; only `attention: plain` uses one."""
    attention: Literal["fast", "plain", "triton"] = "fast"
    """Implementation of the sparse attention, all with the same numbers: fast; plain, step by step; triton, kernels for
    CUDA devices that have run in Triton's interpreter only, so that nothing is known of their speed."""

    @model_validator(mode="after")
    def _check_dims(self) -> ModelConfig:
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be divisible by num_heads {self.num_heads} and by 4")
        return self


class BackboneConfig(Section):
    """The convolutional network that features come from."""

    name: str = "resnet50"
    """A torchvision ResNet (resnet18 ... resnext101_64x4d), resnet10, or `timm/NAME` with the extra `timm`."""
    weights: str | None = "IMAGENET1K_V1"
    """torchvision's name of pretrained weights, a local file (.pth, .safetensors), or none to train from scratch."""
    norm: Literal["frozen_batch_norm", "batch_norm", "group_norm"] = "frozen_batch_norm"
    """Without pretrained weights batch_norm, unless said otherwise."""
    freeze_stem: bool = True
    """Keep the first convolution and the first stage as they are; false without pretrained weights, likewise."""
    dilation: bool = False
    """DC5: the last stage keeps stride 16 and dilates instead."""

    @model_validator(mode="before")
    @classmethod
    def _fit_to_weights(cls, values: Any) -> Any:
        """Let a backbone without pretrained weights train all of itself: frozen noise would teach nothing."""
        if isinstance(values, dict) and values.get("weights", "") in (None, "none"):
            return {"norm": "batch_norm", "freeze_stem": False, **values, "weights": None}
        return values


class LabelAugmentationConfig(Section):
    """Repeated labels in training (paper, section 4.3). Repeat time and repeat ratio exclude each other."""

    repeat_time: PositiveInt | None = None
    """Every label appears this often."""
    repeat_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Labels are repeated until they fill this share of the queries."""
    two_stage_match: bool = False
    """Match the original labels first and their copies on the queries that remain."""

    @model_validator(mode="after")
    def _one_policy(self) -> LabelAugmentationConfig:
        if self.repeat_time is not None and self.repeat_ratio is not None:
            raise ValueError("repeat_time and repeat_ratio exclude each other; set one of them to null")
        return self


class LossConfig(Section):
    """Weights of the losses and of the matching costs."""

    class_weight: NonNegativeFloat = 1.0
    l1_weight: NonNegativeFloat = 5.0
    giou_weight: NonNegativeFloat = 2.0
    class_cost: NonNegativeFloat = 1.0
    l1_cost: NonNegativeFloat = 5.0
    giou_cost: NonNegativeFloat = 2.0
    no_object_weight: PositiveFloat = 0.1
    """Weight of "no object" in the cross-entropy (softmax heads)."""
    focal_alpha: Fraction = 0.25
    auxiliary: bool = True
    """Train every decoder layer, not only the last."""


class PostprocessConfig(Section):
    """From logits to detections."""

    nms: bool = False
    nms_iou: Fraction = 0.7
    suppressed_score_factor: Fraction = 0.01
    """Softmax heads keep what NMS suppressed, with its score multiplied by this."""
    num_candidates: PositiveInt = 2000
    """Sigmoid heads: how many of query x class go into NMS."""
    max_detections: PositiveInt = 100


class DataConfig(Section):
    """What is read, and how images are resized."""

    root: str = "data"
    subset: Annotated[str | None, BeforeValidator(_as_text)] = None
    """A subset that `dedetr subsample` made: a rate, 10shot, 100images, fold1of5, or a file; null: the train split."""
    short_side: PositiveInt = 800
    """Short side at evaluation in pixels; the sizes of training scale along."""
    max_long_side: PositiveInt = 1333
    batch_size: PositiveInt = 4
    """Images of one optimizer step, over all processes and all micro-batches that gradients are accumulated over."""
    num_workers: NonNegativeInt = 2
    """Processes that read images, for each process that trains."""
    cache: bool = False
    """Keep decoded images in memory, if they fit: one copy for each process that trains and its workers."""
    sample_repeat: PositiveInt = 1
    """Every training image comes this often in an epoch, each time augmented anew."""
    augment: bool = True
    """The paper's training augmentation: flip, multi-scale resize, random crop."""
    allow_more_labels_than_queries: bool = False
    on_invalid: Literal["error", "drop"] = "error"
    """What becomes of images and annotations that cannot be used: an error, or they are left out and counted."""

    @model_validator(mode="after")
    def _sides(self) -> DataConfig:
        if self.max_long_side < self.short_side:
            raise ValueError(f"max_long_side {self.max_long_side} is less than short_side {self.short_side}")
        return self


class OptimizerConfig(Section):
    """AdamW."""

    lr: PositiveFloat = 1e-4
    backbone_lr: NonNegativeFloat = 1e-5
    """0 freezes the backbone."""
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: NonNegativeFloat = 0.1
    """Largest norm of all gradients together; 0 does not clip."""
    accumulate: PositiveInt = 1
    """Micro-batches that each process splits its share of a batch into: less memory, the same step."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate and keep an exponential moving average of the weights, with this decay; null: the weights."""
    freeze: list[str] = []
    """Parameters that stay as they are, by name; `*` stands for any text, as in `encoder.*`."""


class ScheduleConfig(Section):
    """How long, and how the learning rate falls."""

    epochs: PositiveInt = 50
    steps: PositiveInt | None = None
    """Optimizer steps of the whole run, in place of `epochs`."""
    kind: Literal["step", "cosine", "constant"] = "step"
    """After the warm-up the learning rates drop once, fall along half a cosine to the last step, or stay."""
    lr_drop_epoch: NonNegativeInt | None = 40
    """`step`: the learning rates fall by `lr_drop_factor` after this many epochs; null: never."""
    lr_drop_step: NonNegativeInt | None = None
    """`step`: or after this many optimizer steps, in place of `lr_drop_epoch`."""
    lr_drop_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    final_lr_factor: Fraction = 0.0
    """`cosine`: what share of the learning rates is left at the end."""
    warmup_steps: NonNegativeInt = 0
    """The learning rates rise linearly over these steps."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations without a better AP; null: never."""


class RunConfig(Section):
    """The run itself."""

    seed: NonNegativeInt = 42
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    eval_every: PositiveInt = 1
    """Evaluate after every so many epochs, and after the last."""
    evaluator: Literal["auto", "pycocotools", "hotcoco"] = "auto"
    """Who computes AP, with the same numbers: hotcoco (extra `fast-eval`) is many times faster; auto: if installed."""
    checkpoint_every: PositiveInt = 1
    """Save after every so many epochs, as far as `checkpoint_share` allows it, and after the last."""
    checkpoint_minutes: NonNegativeFloat = 5.0
    """Save between two steps when the newest checkpoint is this old, as far as `checkpoint_share` allows it."""
    checkpoint_share: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Largest share of the training time that saving may take from it. Checkpoints that a run ends or stops with, and
    those of a new best AP, are written in any case."""
    background_saves: bool = True
    """Write checkpoints while training goes on, from a copy of the weights in memory."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints stay; the best stays besides."""
    log_every: PositiveInt = 10
    """Steps between two lines of metrics.jsonl."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the model's forward and backward pass in training (autocast); matching, losses and evaluation are float32."""
    compile: bool = False
    """Train through `torch.compile`."""
    loggers: list[Literal["tensorboard", "wandb"]] = []
    """Where metrics go besides `metrics.jsonl` and `metrics.csv`; each needs the extra of its name."""
    num_logged_images: NonNegativeInt = 4
    """Validation images whose detections a logger gets at each evaluation."""


class Config(Section):
    """All of a training run; saved as `config.yaml` in the run folder."""

    model: ModelConfig = ModelConfig()
    backbone: BackboneConfig = BackboneConfig()
    label_augmentation: LabelAugmentationConfig = LabelAugmentationConfig()
    loss: LossConfig = LossConfig()
    postprocess: PostprocessConfig = PostprocessConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    run: RunConfig = RunConfig()

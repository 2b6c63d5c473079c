"""The flags of `dedetr train`, by the panel of `--help` that they stand in, and the settings that they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dedetr_cli.completion import complete_model, complete_preset, complete_subset

_DATA, _MODEL, _TRAINING, _LABELS, _RUN = "Data", "Model", "Training", "Label augmentation", "Run"

Model = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_model,
        help="detr, de-detr, dela-detr, conddetr, de-conddetr or dela-conddetr (default: dela-detr).",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(help="The data set: what prepare-data wrote, or a COCO or Cityscapes folder (default: data)."),
]
Epochs = Annotated[int | None, typer.Option(help="How long to train (default: the model's or the recipe's).")]
BatchSize = Annotated[
    int | None, typer.Option(help="Images of one optimizer step, over all processes (default: the recipe's, or 4).")
]
Lr = Annotated[float | None, typer.Option(help="Learning rate.")]
Out = Annotated[Path | None, typer.Option(help="The run folder (default: runs/MODEL-TIME).")]
Preset = Annotated[
    str | None,
    typer.Option(autocompletion=complete_preset, help="Named settings; `none` refuses the data set's recipe."),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Settings from a YAML file, such as --show-config prints.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out (default: runs/latest) where it stopped.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything up to the first step, and write and fetch nothing.")
]
ShowConfig = Annotated[
    bool, typer.Option("--show-config", help="Print every setting with its origin, as YAML that --config reads.")
]
Replay = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Make a step again that diverged, from what the run left in diverged/, and tell what breaks.",
    ),
]

Subset = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete_subset,
        help="What `subsample` made: 0.05, 10shot, 100images, fold1of5, or a file (default: all training images).",
        rich_help_panel=_DATA,
    ),
]
ShortSide = Annotated[
    int | None, typer.Option(help="Images are scaled to this short side in pixels.", rich_help_panel=_DATA)
]
MaxLongSide = Annotated[int | None, typer.Option(help="But to no longer long side than this.", rich_help_panel=_DATA)]
SampleRepeat = Annotated[
    int | None,
    typer.Option(help="Every image comes this often in an epoch, augmented anew.", rich_help_panel=_DATA),
]
Workers = Annotated[
    int | None, typer.Option(help="Processes that read images, for each that trains.", rich_help_panel=_DATA)
]
Cache = Annotated[
    bool | None,
    typer.Option("--cache/--no-cache", help="Keep decoded images in memory, if they fit.", rich_help_panel=_DATA),
]

Backbone = Annotated[
    str | None, typer.Option(help="resnet50, another torchvision ResNet, or timm/NAME.", rich_help_panel=_MODEL)
]
BackboneWeights = Annotated[
    str | None,
    typer.Option(help="torchvision's name, a file, or none to train from scratch.", rich_help_panel=_MODEL),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download", help="Fetch torchvision's backbone weights if they are not here.", rich_help_panel=_MODEL
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Start from this detector (ours or a reference .pth), which decides on the architecture.",
        rich_help_panel=_MODEL,
    ),
]
NumQueries = Annotated[int | None, typer.Option(help="Objects that an image can have at most.", rich_help_panel=_MODEL)]
Nms = Annotated[
    bool | None, typer.Option("--nms/--no-nms", help="Suppress repeated detections.", rich_help_panel=_MODEL)
]
NmsIou = Annotated[
    float | None, typer.Option(help="Overlap from which a detection is repeated.", rich_help_panel=_MODEL)
]

Steps = Annotated[
    int | None, typer.Option(help="Optimizer steps of the whole run, in place of --epochs.", rich_help_panel=_TRAINING)
]
Schedule = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="step, cosine or constant: how the learning rates fall after the warm-up.",
        rich_help_panel=_TRAINING,
    ),
]
LrDrop = Annotated[
    int | None,
    typer.Option(metavar="EPOCH", help="Schedule `step`: the rates drop after it.", rich_help_panel=_TRAINING),
]
WarmupSteps = Annotated[
    int | None, typer.Option(help="The learning rates rise over these steps.", rich_help_panel=_TRAINING)
]
LrBackbone = Annotated[
    float | None, typer.Option(help="Learning rate of the backbone; 0 freezes it.", rich_help_panel=_TRAINING)
]
WeightDecay = Annotated[float | None, typer.Option(help="Of AdamW.", rich_help_panel=_TRAINING)]
Accumulate = Annotated[
    int | None,
    typer.Option(
        help="Micro-batches that a process splits its share of a batch into: less memory, the same step.",
        rich_help_panel=_TRAINING,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="float32, bfloat16 or float16, of the model in training (autocast).",
        rich_help_panel=_TRAINING,
    ),
]
Ema = Annotated[
    float | None,
    typer.Option(metavar="DECAY", help="Evaluate and keep a moving average of the weights.", rich_help_panel=_TRAINING),
]
Patience = Annotated[
    int | None, typer.Option(help="Stop after so many evaluations without a better AP.", rich_help_panel=_TRAINING)
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN", help="Parameters to keep as they are, such as `encoder.*`.", rich_help_panel=_TRAINING
    ),
]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.", rich_help_panel=_TRAINING)
]
Seed = Annotated[int | None, typer.Option(help="Of all random numbers.", rich_help_panel=_TRAINING)]

RepeatLabel = Annotated[
    int | None, typer.Option(metavar="K", help="Every label appears K times.", rich_help_panel=_LABELS)
]
RepeatRatio = Annotated[
    float | None,
    typer.Option(metavar="R", help="Or: labels fill this share of the queries.", rich_help_panel=_LABELS),
]
TwoStageMatch = Annotated[
    bool | None,
    typer.Option(
        "--two-stage-match/--one-stage-match",
        help="Match the original labels first, their copies on what remains.",
        rich_help_panel=_LABELS,
    ),
]

Nproc = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Processes that train together on this machine.", rich_help_panel=_RUN),
]
Slurm = Annotated[
    bool,
    typer.Option(
        "--slurm", help="Submit the run to Slurm, and let it go on by itself after time-outs.", rich_help_panel=_RUN
    ),
]
SlurmSet = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="For --slurm: an option of sbatch, e.g. partition=gpu.", rich_help_panel=_RUN
    ),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write TensorBoard's files too.", rich_help_panel=_RUN)
]
Wandb = Annotated[bool, typer.Option("--wandb", help="Log to Weights & Biases too.", rich_help_panel=_RUN)]
Override = Annotated[
    bool,
    typer.Option("--override", help="Resume although settings or data differ from the run's.", rich_help_panel=_RUN),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run left in --out.", rich_help_panel=_RUN)
]

_KEYS: dict[str, str] = {
    "model": "model.name",
    "data": "data.root",
    "epochs": "schedule.epochs",
    "batch_size": "data.batch_size",
    "lr": "optimizer.lr",
    "device": "run.device",
    "subset": "data.subset",
    "short_side": "data.short_side",
    "max_long_side": "data.max_long_side",
    "sample_repeat": "data.sample_repeat",
    "workers": "data.num_workers",
    "cache": "data.cache",
    "backbone": "backbone.name",
    "backbone_weights": "backbone.weights",
    "num_queries": "model.num_queries",
    "nms": "postprocess.nms",
    "nms_iou": "postprocess.nms_iou",
    "steps": "schedule.steps",
    "schedule": "schedule.kind",
    "lr_drop": "schedule.lr_drop_epoch",
    "warmup_steps": "schedule.warmup_steps",
    "lr_backbone": "optimizer.backbone_lr",
    "weight_decay": "optimizer.weight_decay",
    "accumulate": "optimizer.accumulate",
    "precision": "run.precision",
    "ema": "optimizer.ema_decay",
    "patience": "schedule.patience",
    "freeze": "optimizer.freeze",
    "compile_": "run.compile",
    "seed": "run.seed",
    "repeat_label": "label_augmentation.repeat_time",
    "repeat_ratio": "label_augmentation.repeat_ratio",
    "two_stage_match": "label_augmentation.two_stage_match",
}
"""The setting that each parameter of the command stands for."""

_NEGATIVES = {
    "two_stage_match": "--one-stage-match",
    "nms": "--no-nms",
    "compile_": "--no-compile",
    "cache": "--no-cache",
}
_LOGGERS = ("tensorboard", "wandb")


def flag_of(name: str) -> str:
    """Return the flag of a parameter of the command."""
    return f"--{name.strip('_').replace('_', '-')}"


def words_of(parameters: Mapping[str, Any]) -> list[str]:
    """Return flags as words of a command line.

    Args:
        parameters: of the command, by name; None, or an empty list, where the flag was not given.
    """
    words: list[str] = []
    for name, value in parameters.items():
        if value is True:
            words.append(flag_of(name))
        elif value is False:
            words += [_NEGATIVES[name]] if name in _NEGATIVES else []
        elif value is not None:
            words += [f"{flag_of(name)}={each}" for each in (value if isinstance(value, list) else [value])]
    return words


def settings_of(parameters: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[str, Any]]:
    """Return the settings that flags were given for, by key path, each with the flag's name.

    Args:
        parameters: of the command, by name; None, or an empty list, where the flag was not given.
    """
    settings: dict[tuple[str, ...], tuple[str, Any]] = {}
    for name, key in _KEYS.items():
        value = parameters[name]
        if value is None or value == []:
            continue
        flag = _NEGATIVES[name] if value is False else flag_of(name)
        settings[tuple(key.split("."))] = (flag, value)
    loggers = [name for name in _LOGGERS if parameters[name]]
    if loggers:
        settings["run", "loggers"] = (", ".join(f"--{name}" for name in loggers), loggers)
    return settings

"""`dedetr train`: flags to a checked configuration, then one run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dedetr_cli.options import Debug, Device, Json, Set, Trust
from dedetr_cli.output import as_dict, print_json, print_line, print_note, stdout
from dedetr_cli.progress import make_reporter
from dedetr_cli.tables import evaluation_tables

_FLAG_KEYS: dict[str, tuple[str, str]] = {
    "--model": ("model", "name"),
    "--data": ("data", "root"),
    "--subset": ("data", "subset"),
    "--epochs": ("schedule", "epochs"),
    "--batch-size": ("data", "batch_size"),
    "--short-side": ("data", "short_side"),
    "--lr": ("optimizer", "lr"),
    "--lr-backbone": ("optimizer", "backbone_lr"),
    "--backbone": ("backbone", "name"),
    "--backbone-weights": ("backbone", "weights"),
    "--num-queries": ("model", "num_queries"),
    "--workers": ("data", "num_workers"),
    "--device": ("run", "device"),
    "--seed": ("run", "seed"),
}


def train(
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="detr, de-detr, dela-detr, conddetr, de-conddetr or dela-conddetr.  [default: dela-detr]"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="The data set: what prepare-data wrote, or a COCO or Cityscapes folder.  [default: data]"
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option("--subset", help="A rate or a file that `subsample` made.  [default: all training images]"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder.  [default: runs/MODEL-TIME]")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size")] = None,
    short_side: Annotated[
        int | None, typer.Option("--short-side", help="Images are scaled to this short side in pixels.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    lr_backbone: Annotated[
        float | None, typer.Option("--lr-backbone", help="Learning rate of the backbone; 0 freezes it.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="resnet50, another torchvision ResNet, or timm/NAME.")
    ] = None,
    backbone_weights: Annotated[
        str | None,
        typer.Option("--backbone-weights", help="torchvision's name, a file, or none to train from scratch."),
    ] = None,
    num_queries: Annotated[int | None, typer.Option("--num-queries")] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Start from this detector (ours or a reference .pth).")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Named settings; `none` refuses the data set's recipe.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Settings from a YAML file.")] = None,
    set_: Set = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes that read images.")] = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out (default: runs/latest) where it stopped.")
    ] = False,
    override: Annotated[
        bool, typer.Option("--override", help="Resume although settings or data differ from the run's.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left in --out.")] = False,
    trust_checkpoint: Trust = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch torchvision's backbone weights if they are not here.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a detector, and evaluate it as it learns.

    Examples:

      dedetr train --model dela-detr

      dedetr train --subset 0.05 --epochs 100

      dedetr train --preset small --backbone timm/tf_efficientnet_lite0 --backbone-weights lite0.safetensors
    """
    from core import api

    given = {
        "--model": model, "--data": data, "--subset": subset, "--epochs": epochs, "--batch-size": batch_size,
        "--short-side": short_side, "--lr": lr, "--lr-backbone": lr_backbone, "--backbone": backbone,
        "--backbone-weights": backbone_weights,
        "--num-queries": num_queries, "--workers": workers, "--device": device, "--seed": seed,
    }  # fmt: skip
    flags: dict[str, Any] = {flag: value for flag, value in given.items() if value is not None}
    if resume and (config is not None or preset is not None):
        raise typer.BadParameter("a run is resumed with its own settings", param_hint="--config, --preset")
    if override and not resume:
        raise typer.BadParameter("is for --resume", param_hint="--override")
    if resume:
        resolved = api.resume_config(out, flags=_by_key(flags), assignments=set_ or [])
    else:
        resolved = api.resolve_train_config(
            flags=_by_key(flags),
            assignments=set_ or [],
            config_file=config,
            preset=preset,
            environment=os.environ,
            on_note=print_note,
        )
    with make_reporter() as reporter:
        result = api.train(
            resolved.config,
            out=out,
            weights=weights,
            resume=resume,
            override=override,
            overwrite=overwrite,
            trust=trust_checkpoint,
            download=download,
            command=sys.argv,
            reporter=reporter,
            on_note=print_note,
        )
    if as_json:
        print_json("train", as_dict(result))
        return
    for made in evaluation_tables(result.evaluation, f"{resolved.config.model.name}, last epoch"):
        stdout().print(made)
    print_line(str(result.run_folder))


def _by_key(flags: dict[str, Any]) -> dict[tuple[str, ...], tuple[str, Any]]:
    return {_FLAG_KEYS[flag]: (flag, value) for flag, value in flags.items()}

"""`dedetr visualize`: pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dedetr_cli.options import Checkpoint, Debug, Device, Json, Set, Trust
from dedetr_cli.output import as_dict, print_json, print_line, print_note


def visualize(
    checkpoint: Checkpoint = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the pictures go.  [default: plots/ of the run]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The data set.  [default: the one it was trained on]")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    num_images: Annotated[int, typer.Option("--num-images", min=0, help="How many images.")] = 8,
    threshold: Annotated[float, typer.Option("--threshold", min=0.0, max=1.0)] = 0.5,
    set_: Set = None,
    device: Device = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw ground truth beside predictions, and the training curves of the run."""
    from core import api

    outcome = api.visualize(
        checkpoint,
        out=out,
        data=data,
        split=split,
        num_images=num_images,
        threshold=threshold,
        assignments=set_ or [],
        device=device,
        trust=trust_checkpoint,
        on_note=print_note,
    )
    if as_json:
        print_json("visualize", as_dict(outcome))
        return
    for path in outcome.pictures:
        print_line(str(path))

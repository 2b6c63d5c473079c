"""`dedetr visualize`: pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dedetr_cli.completion import complete_mode, complete_split
from dedetr_cli.options import Checkpoint, Debug, Device, Json, Set, Trust
from dedetr_cli.output import as_dict, print_json, print_line, print_note
from dedetr_cli.progress import make_counter


def visualize(
    checkpoint: Checkpoint = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode",
            metavar="MODE",
            autocompletion=complete_mode,
            show_default="compare,curves",
            help="compare (ground truth beside predictions), curves (of the run), matches (which queries learn from "
            "which label), attention (where queries look) or all; several by commas, or repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", show_default="plots/ of the run", help="Where the pictures go.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", show_default="the one it was trained on", help="The data set.")
    ] = None,
    split: Annotated[str, typer.Option("--split", autocompletion=complete_split, help="train, val or test.")] = "val",
    num_images: Annotated[int, typer.Option("--num-images", min=0, help="How many images.")] = 8,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, max=1.0, help="compare: leave out detections that score less.")
    ] = 0.5,
    num_queries_shown: Annotated[
        int, typer.Option("--num-queries-shown", min=1, help="attention: how many queries, the surest first.")
    ] = 3,
    set_: Set = None,
    device: Device = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw ground truth beside predictions, training curves, what queries learn from, and where they look.

    Examples:

      dedetr visualize

      dedetr visualize --mode curves,attention --num-images 4
    """
    from core import api

    with make_counter("drawn") as counter:
        outcome = api.visualize(
            checkpoint,
            modes=[name.strip() for names in mode for name in names.split(",")] if mode else None,
            out=out,
            data=data,
            split=split,
            num_images=num_images,
            threshold=threshold,
            num_queries_shown=num_queries_shown,
            assignments=set_ or [],
            device=device,
            trust=trust_checkpoint,
            on_images=counter,
            on_note=print_note,
        )
    if as_json:
        print_json("visualize", {**as_dict(outcome), "pictures": outcome.pictures})
        return
    for path in outcome.pictures:
        print_line(str(path))

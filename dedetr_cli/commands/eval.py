"""`dedetr eval`: how good a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dedetr_cli.completion import complete_split
from dedetr_cli.options import Checkpoint, Debug, Device, Json, Set, Trust
from dedetr_cli.output import as_dict, print_json, print_note, stdout
from dedetr_cli.progress import make_counter
from dedetr_cli.relaunch import run_in_processes
from dedetr_cli.tables import evaluation_tables


def evaluate(
    checkpoint: Checkpoint = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The data set. (default: the one it was trained on)")
    ] = None,
    split: Annotated[str, typer.Option("--split", autocompletion=complete_split, help="train, val or test.")] = "val",
    set_: Set = None,
    device: Device = None,
    nproc: Annotated[
        int | None, typer.Option("--nproc", min=1, help="Processes on this machine that share the images.")
    ] = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a checkpoint: the 12 COCO numbers and the AP of every class, equal to pycocotools'.

    Examples:

      dedetr eval                                      the newest run, on the val split that it was trained beside

      dedetr eval --checkpoint runs/mine --split test --json
    """
    from core import api

    if nproc is not None and nproc > 1 and not api.was_launched():
        run_in_processes(nproc)
        return
    with make_counter("evaluated") as counter:
        outcome = api.evaluate(
            checkpoint,
            data=data,
            split=split,
            assignments=set_ or [],
            device=device,
            trust=trust_checkpoint,
            on_images=counter,
            on_note=print_note,
        )
    if not api.is_main_process():
        return
    if as_json:
        print_json("eval", as_dict(outcome))
        return
    title = f"{outcome.split} of {outcome.data}, {outcome.evaluation.num_images} images"
    for made in evaluation_tables(outcome.evaluation, title):
        stdout().print(made)

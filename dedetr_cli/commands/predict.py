"""`dedetr predict`: what a checkpoint sees in images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.errors import DataError
from dedetr_cli.options import Checkpoint, Debug, Device, Json, Set, Trust
from dedetr_cli.output import as_dict, print_json, print_line, print_note, print_warning
from dedetr_cli.progress import make_counter


def predict(
    inputs: Annotated[list[str], typer.Argument(help="Images, folders of images, or patterns such as 'shots/*.jpg'.")],
    out: Annotated[Path, typer.Option("--out", help="Where pictures, predictions.json and predictions.csv go.")] = Path(
        "predictions"
    ),
    checkpoint: Checkpoint = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, max=1.0, help="Leave out detections that score less.")
    ] = 0.5,
    nms: Annotated[
        bool | None, typer.Option("--nms/--no-nms", help="Suppress overlapping detections.  [default: as trained]")
    ] = None,
    nms_iou: Annotated[
        float | None, typer.Option("--nms-iou", min=0.0, max=1.0, help="Overlap that suppresses.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 1,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw annotated images.")] = True,
    set_: Set = None,
    device: Device = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Detect objects: annotated pictures, predictions.json (COCO results) and predictions.csv, best score first."""
    from core import api

    with make_counter("predicted") as counter:
        outcome = api.predict(
            inputs,
            out=out,
            checkpoint=checkpoint,
            threshold=threshold,
            nms=nms,
            nms_iou=nms_iou,
            batch_size=batch_size,
            pictures=pictures,
            assignments=set_ or [],
            device=device,
            trust=trust_checkpoint,
            on_images=counter,
            on_note=print_note,
        )
    for failure in outcome.unreadable:
        print_warning(failure)
    if as_json:
        print_json("predict", as_dict(outcome))
    else:
        print_line(f"{outcome.num_detections} detections in {outcome.num_images} images: {outcome.out}")
    if outcome.unreadable:
        num_unreadable = len(outcome.unreadable)
        raise DataError(
            f"{num_unreadable} of {outcome.num_images + num_unreadable} images could not be read (named above)",
            hint="the others are done; mend or remove these",
        )

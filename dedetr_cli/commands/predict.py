"""`dedetr predict`: what a checkpoint sees in images."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from core.errors import DataError, UsageError
from dedetr_cli.completion import complete_class
from dedetr_cli.options import Checkpoint, Debug, Device, Json, Set, Trust
from dedetr_cli.output import as_dict, print_json, print_line, print_note, print_warning
from dedetr_cli.progress import make_counter


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders of images, or patterns such as 'shots/*.jpg'; - reads file names from stdin."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where pictures, predictions.json and predictions.csv go.")] = Path(
        "predictions"
    ),
    checkpoint: Checkpoint = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, max=1.0, help="Leave out detections that score less.")
    ] = 0.5,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--classes",
            metavar="NAME,NAME",
            autocompletion=complete_class,
            help="Keep only objects of these classes.",
        ),
    ] = None,
    nms: Annotated[
        bool | None, typer.Option("--nms/--no-nms", help="Suppress overlapping detections. (default: as trained)")
    ] = None,
    nms_iou: Annotated[
        float | None, typer.Option("--nms-iou", min=0.0, max=1.0, help="Overlap that suppresses.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time: changes the speed.")] = 1,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw annotated images.")] = True,
    yolo: Annotated[
        bool, typer.Option("--yolo", help="Write labels/NAME.txt too: class, centre x and y, width, height, score.")
    ] = False,
    crops: Annotated[bool, typer.Option("--crops", help="Cut every object out: crops/CLASS/NAME-1.jpg.")] = False,
    set_: Set = None,
    device: Device = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Detect objects: annotated pictures, predictions.json (COCO results) and predictions.csv, best score first.

    Examples:

      dedetr predict photos/ --out vis/ --threshold 0.7

      find . -name '*.jpg' | dedetr predict - --yolo --no-pictures
    """
    from core import api

    wanted = None if classes is None else [name for text in classes for name in _names_in(text)]
    with make_counter("predicted") as counter:
        outcome = api.predict(
            list(_with_stdin(inputs)),
            out=out,
            checkpoint=checkpoint,
            threshold=threshold,
            classes=wanted,
            nms=nms,
            nms_iou=nms_iou,
            batch_size=batch_size,
            pictures=pictures,
            yolo=yolo,
            crops=crops,
            assignments=set_ or [],
            device=device,
            trust=trust_checkpoint,
            on_images=counter,
            on_note=print_note,
        )
    for failure in outcome.unreadable:
        print_warning(failure)
    num_unreadable = len(outcome.unreadable)
    error = DataError(
        f"{num_unreadable} of {outcome.num_images + num_unreadable} images could not be read (named above)",
        hint="the others are done; mend or remove these",
    )
    if as_json:
        print_json("predict", as_dict(outcome), error if outcome.unreadable else None)
    else:
        print_line(f"{outcome.num_detections} detections in {outcome.num_images} images: {outcome.out}")
    if outcome.unreadable:
        raise error


def _names_in(text: str) -> list[str]:
    """Return the names between commas; one that holds a comma stands in double quotes."""
    try:
        names = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise UsageError(f"cannot be read: {error}", where="--classes", hint="separate names by commas") from None
    return [name.strip() for name in names if name.strip()]


def _with_stdin(inputs: list[str]) -> Iterator[str]:
    """Yield the inputs, with the names that standard input holds in place of `-`.

    Raises:
        DataError: it holds none.
    """
    for name in inputs:
        if name != "-":
            yield name
            continue
        content = sys.stdin.buffer.read()
        lines = content.split(b"\0") if b"\0" in content else content.splitlines()
        names = [os.fsdecode(line) for line in lines if line.strip()]
        if not names:
            raise DataError("no file name came from standard input", where="-", hint="one on each line")
        yield from names

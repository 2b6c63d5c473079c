"""`dedetr prepare-data`: from any source to the data set that every other command reads."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dedetr_cli.options import Debug, Json
from dedetr_cli.output import as_dict, print_json, print_note, stdout, table


class SourceFormat(str, Enum):
    """What a source can be."""

    voc = "voc"
    coco = "coco"
    cityscapes = "cityscapes"


def prepare_data(
    source: Annotated[
        Path | None, typer.Argument(help="A folder of labelled images; without it the embedded demo set is written.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where the prepared data set goes.")] = Path("data"),
    source_format: Annotated[
        SourceFormat | None, typer.Option("--format", help="What the source is. (default: recognised)")
    ] = None,
    val: Annotated[
        float | None,
        typer.Option(
            "--val", help="Share of images set aside for validation where the source has no lists. (default: 0.2)"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of that split.")] = 0,
    one_based: Annotated[bool, typer.Option("--one-based", help="VOC boxes count pixels from 1: subtract 1.")] = False,
    copy_images: Annotated[
        bool, typer.Option("--copy-images", help="Copy the images too, instead of recording where they lie.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse boxes without size, and pictures that are in two splits.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prepare a data set: convert, check and split it.

    Examples:

      dedetr prepare-data                      the embedded demo set into data/ (and images/)

      dedetr prepare-data VOCdevkit/mine       Pascal VOC, its own lists or a seeded split

      dedetr prepare-data coco --out data
    """
    from core import api

    report = api.prepare_data(
        source,
        out,
        source_format=source_format.value if source_format else None,
        val_rate=val,
        seed=seed,
        one_based=one_based,
        copy_images=copy_images,
        strict=strict,
    )
    if as_json:
        print_json("prepare-data", as_dict(report))
        return
    for note in report.notes:
        print_note(note)
    rows = [(part.name, part.num_images, part.num_annotations, part.num_empty_images) for part in report.splits]
    stdout().print(table(f"{report.name} in {report.root}", ("split", "images", "boxes", "without objects"), rows))
    class_rows = [(name, *(part.class_counts.get(name, 0) for part in report.splits)) for name in report.classes]
    stdout().print(table("boxes by class", ("class", *(part.name for part in report.splits)), class_rows))
    if report.recipe:
        print_note(f"recommended recipe: {report.recipe} (`dedetr train` takes it unless told otherwise)")

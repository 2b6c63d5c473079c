"""`dedetr prepare-data`: from any source to the data set that every other command reads."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import UsageError
from dedetr_cli.completion import complete_export, complete_format
from dedetr_cli.options import Debug, Json
from dedetr_cli.output import as_dict, print_json, print_note, stdout, table
from dedetr_cli.progress import make_byte_counter

if TYPE_CHECKING:
    from core.api import PrepareReport


class BoxFormat(str, Enum):
    """How boxes stand in a COCO file."""

    xywh = "xywh"
    xyxy = "xyxy"
    xywh_norm = "xywh-norm"
    xyxy_norm = "xyxy-norm"


class OnInvalid(str, Enum):
    """What becomes of images and annotations that cannot be used."""

    error = "error"
    drop = "drop"


_SPLITS, _OUTPUT, _CHECKS = "Splits", "Output", "Checks"


def prepare_data(
    source: Annotated[
        Path | None,
        typer.Argument(help="A folder or file of labelled images; without it the embedded demo set is written."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where the data set goes.")] = Path("data"),
    source_format: Annotated[
        str | None,
        typer.Option("--format", autocompletion=complete_format, help="What the source is. (default: recognised)"),
    ] = None,
    one_based: Annotated[
        bool, typer.Option("--one-based", help="Box edges (VOC, CSV) count pixels from 1: subtract 1.")
    ] = False,
    boxes: Annotated[
        BoxFormat,
        typer.Option("--boxes", help="Of COCO files whose boxes are not left, top, width, height in pixels."),
    ] = BoxFormat.xywh,
    allow_unlisted: Annotated[
        bool,
        typer.Option("--allow-unlisted", help="Leave out annotations of images that a COCO file does not list."),
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="With --format coco: fetch COCO 2017 into SOURCE first (21 GB).")
    ] = False,
    val: Annotated[
        float | None,
        typer.Option(
            "--val", rich_help_panel=_SPLITS, help="Share of images for validation. (default: 0.2, or the source's own)"
        ),
    ] = None,
    test: Annotated[
        float | None, typer.Option("--test", rich_help_panel=_SPLITS, help="Share of images for a test split.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="REGEX",
            rich_help_panel=_SPLITS,
            help="Images in whose names this finds the same stay on one side, e.g. '^(patient\\d+)'.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, rich_help_panel=_SPLITS, help="Make so many data sets: OUT/fold-1 and so on."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, rich_help_panel=_SPLITS, help="Of the splits.")] = 0,
    copy_images: Annotated[
        bool,
        typer.Option(
            "--copy-images", rich_help_panel=_OUTPUT, help="Copy the images too, instead of recording where they lie."
        ),
    ] = False,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            autocompletion=complete_export,
            rich_help_panel=_OUTPUT,
            help="Write another format into OUT: yolo, voc or coco.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=_OUTPUT, help="Read and check everything, write nothing.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            rich_help_panel=_CHECKS,
            help="Only report: all faults, pictures that repeat, statistics, advice. Writes nothing.",
        ),
    ] = False,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", rich_help_panel=_CHECKS, help="With --check: draw the statistics into this folder."),
    ] = None,
    on_invalid: Annotated[
        OnInvalid,
        typer.Option("--on-invalid", rich_help_panel=_CHECKS, help="Refuse what cannot be used, or leave it out."),
    ] = OnInvalid.error,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", rich_help_panel=_CHECKS, help="Refuse boxes without size, and pictures that are in two splits."
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prepare a data set: convert, check and split it.

    Examples:

      dedetr prepare-data                              the embedded demo set into data/ (and images/)

      dedetr prepare-data VOCdevkit/mine               Pascal VOC, COCO, YOLO, CSV, Cityscapes: recognised

      dedetr prepare-data photos --val 0.2 --test 0.1 --group '^(patient\\d+)'

      dedetr prepare-data data --check                 every fault, near-duplicates, statistics, advice

      dedetr prepare-data data --export yolo --out for-yolo

      dedetr prepare-data coco --format coco --download --out data
    """
    from core import api

    if check:
        from dedetr_cli.check import check_data

        unused = {
            "--val": val, "--test": test, "--group": group, "--folds": folds, "--copy-images": copy_images,
            "--export": export, "--dry-run": dry_run, "--download": download,
            "--on-invalid": on_invalid is OnInvalid.drop,
        }  # fmt: skip
        flag = next((flag for flag, value in unused.items() if value), None)
        if flag is not None:
            raise UsageError("does not go with --check, which makes nothing", where=flag, hint="leave out one of them")
        check_data(
            source or out,
            source_format,
            one_based=one_based,
            boxes=boxes.value,
            allow_unlisted=allow_unlisted,
            strict=strict,
            pictures=pictures,
            as_json=as_json,
        )
        return
    if pictures is not None:
        raise UsageError("draws what --check finds", where="--pictures", hint="add --check")
    with make_byte_counter() as counter:
        report = api.prepare_data(
            source,
            out,
            source_format=source_format,
            boxes=boxes.value,
            allow_unlisted=allow_unlisted,
            download=download,
            on_note=print_note,
            on_bytes=counter,
            val_rate=val,
            test_rate=test,
            group=group,
            num_folds=folds,
            seed=seed,
            one_based=one_based,
            copy_images=copy_images,
            strict=strict,
            drop_invalid=on_invalid is OnInvalid.drop,
            export_format=export,
            dry_run=dry_run,
        )
    if as_json:
        print_json("prepare-data", as_dict(report))
        return
    _print_report(report)


def _print_report(report: PrepareReport) -> None:
    for note in report.notes:
        print_note(note)
    title = f"{report.name} in {report.root}" if report.was_written else f"{report.name} (nothing was written)"
    rows = [(part.name, part.num_images, part.num_annotations, part.num_empty_images) for part in report.splits]
    stdout().print(table(title, ("split", "images", "boxes", "without objects"), rows))
    class_rows = [(name, *(part.class_counts.get(name, 0) for part in report.splits)) for name in report.classes]
    stdout().print(table("boxes by class", ("class", *(part.name for part in report.splits)), class_rows))
    if report.recipe:
        print_note(f"recommended recipe: {report.recipe} (`dedetr train` takes it unless told otherwise)")

"""`dedetr subsample`: a seeded, nested part of the training images, or folds of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import UsageError
from dedetr_cli.options import DataRoot, Debug, Json
from dedetr_cli.output import as_dict, print_json, print_line, print_note, stdout, table

if TYPE_CHECKING:
    from core.api import FoldsReport, SubsetReport

_CHOICE = "How it is chosen"


def subsample(
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="This share of the training images, in (0, 1]."),
    ] = None,
    num_images: Annotated[int | None, typer.Option("--num-images", help="So many images.")] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            "--shots",
            help="Images with so many boxes of every class, or more: they keep all their boxes.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            help="So many parts of equal size and classes: for each a subset of the others, and one of its own.",
        ),
    ] = None,
    from_manifest: Annotated[
        Path | None,
        typer.Option(
            "--from-manifest",
            help="The images that a subset's manifest names, or those of a COCO file.",
        ),
    ] = None,
    stratify: Annotated[
        bool,
        typer.Option(
            "--stratify",
            help="Every class where possible, and in its share; with --rate or --num-images. (default: by chance)",
            rich_help_panel=_CHOICE,
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Another seed takes other images. (default: 0)", rich_help_panel=_CHOICE),
    ] = None,
    data: DataRoot = Path("data"),
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The subset file, or a folder. (default: beside the training annotations)"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Choose a part of the training images; smaller parts of one seed lie inside larger ones.

    Give one of --rate, --num-images, --shots, --folds and --from-manifest. Train on the result with
    `dedetr train --subset NAME`; a NAME is a rate (0.05), 10shot, 100images, fold1of5, 5pct-stratified, or a file.

    Examples:

      dedetr subsample --rate 0.05                     5 %, at random

      dedetr subsample --num-images 100 --stratify     every class, in its share

      dedetr subsample --shots 10                      10 boxes of every class

      dedetr subsample --folds 5                       for cross-validation

      dedetr subsample --from-manifest sent.json       the same images again
    """
    from core import api

    if folds is not None:
        others = {"--rate": rate, "--num-images": num_images, "--shots": shots, "--from-manifest": from_manifest}
        _refuse_with_folds([flag for flag, value in others.items() if value is not None], stratify=stratify)
        _print_folds(api.subsample_folds(data, folds, seed=seed, out=out, dry_run=dry_run), data, as_json=as_json)
        return
    report = api.subsample(
        data,
        rate,
        num_images=num_images,
        shots=shots,
        stratify=stratify,
        from_manifest=from_manifest,
        seed=seed,
        out=out,
        dry_run=dry_run,
    )
    if as_json:
        print_json("subsample", as_dict(report))
        return
    for note in report.notes:
        print_note(note)
    title = f"{report.num_images} of {report.num_parent_images} images ({report.description})"
    rows = [(name, count, report.parent_class_counts[name]) for name, count in report.class_counts.items()]
    stdout().print(table(title, ("class", "boxes", "of"), rows))
    print_line(str(report.path))
    is_plain = data == Path("data") and not seed and out is None
    where = report.name if is_plain else f"{report.path} --data {data}"
    print_note(_DRY if dry_run else f"train on it: dedetr train --subset {where}")


_DRY = "a dry run: nothing was written"


def _refuse_with_folds(flags: list[str], *, stratify: bool) -> None:
    if flags:
        raise UsageError("cannot be combined with --folds", where=flags[0], hint="leave one of the two out")
    if stratify:
        raise UsageError("folds are stratified anyway", where="--stratify", hint="leave it out")


def _print_folds(report: FoldsReport, data: Path, *, as_json: bool) -> None:
    if as_json:
        print_json("subsample", as_dict(report))
        return
    parts: list[SubsetReport] = [part for fold in report.folds for part in (fold.train, fold.held_out)]
    for part in parts:
        for note in part.notes:
            print_note(f"{part.path.name}: {note}")
    title = f"{report.num_parent_images} images in {report.num_folds} folds, seed {report.seed}"
    rows = [(part.path.name, part.num_images, part.num_annotations) for part in parts]
    stdout().print(table(title, ("file", "images", "boxes"), rows))
    print_line(str(parts[0].path.parent))
    where = parts[0].name if data == Path("data") else f"{parts[0].path} --data {data}"
    print_note(_DRY if report.dry_run else f"train on all but the first fold: dedetr train --subset {where}")

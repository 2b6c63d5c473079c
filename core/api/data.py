"""Data sets: prepared, and cut into subsets. Loads no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from core.annotations.box_formats import BoxFormat
from core.annotations.content import ReadOptions
from core.annotations.prepare import export, prepare
from core.annotations.prepare_demo import prepare_demo
from core.annotations.prepare_report import PrepareReport
from core.annotations.prepared import open_dataset
from core.annotations.splits import SplitPlan
from core.annotations.subsets import FoldsReport, Selection, SubsetReport, asked_for
from core.annotations.subsets import subsample as choose_subset
from core.annotations.subsets import subsample_folds as choose_folds
from core.api.common import Say, say_nothing
from core.errors import UsageError

if TYPE_CHECKING:
    from core.annotations.download import OnBytes


def prepare_data(
    source: Path | None,
    out: Path = Path("data"),
    *,
    source_format: str | None = None,
    val_rate: float | None = None,
    test_rate: float | None = None,
    group: str | None = None,
    num_folds: int | None = None,
    seed: int = 0,
    one_based: bool = False,
    boxes: BoxFormat = "xywh",
    allow_unlisted: bool = False,
    download: bool = False,
    copy_images: bool = False,
    strict: bool = False,
    drop_invalid: bool = False,
    export_format: str | None = None,
    dry_run: bool = False,
    on_note: Say = say_nothing,
    on_bytes: OnBytes | None = None,
) -> PrepareReport:
    """Prepare a data set in `out`; without a source the embedded demo set, with pictures in `images` beside it.

    Args:
        source: a folder or file of labelled images.
        out: the folder to make, or to replace if it was made by this function.
        source_format: one of `format_names`; by default it is recognised.
        val_rate: share of images that are put aside for validation where the source has no val split.
        test_rate: share for a test split.
        group: a regular expression; images in whose file names it finds the same stay on one side of all splits.
        num_folds: make so many data sets, `out`/fold-1 and so on, each with another part as val.
        seed: of the splits, or of the demo's drawings.
        one_based: box edges of Pascal VOC and CSV count pixels from 1.
        boxes: the format of boxes in COCO files, where it is not COCO's own; their areas become those of the boxes.
        allow_unlisted: leave out annotations of images that a COCO file does not list.
        download: fetch COCO 2017 into `source` first, as far as it is not there.
        copy_images: copy the images into `out`.
        strict: refuse boxes of zero size, and pictures in two splits.
        drop_invalid: leave out images and annotations that cannot be used.
        export_format: write `out` in this format instead, one of `export_format_names`.
        dry_run: do all but write.
        on_note: is told how a download goes on, a sentence at a time.
        on_bytes: is told how many bytes of a file are here, and how many it has.

    Raises:
        DataError: the source is missing or has a fault; nothing is left behind but an archive's unpacked folder.
        UsageError: `out` holds something that prepare-data did not write, or arguments do not go together.
        MachineError: `out` cannot be written.
    """
    plan = SplitPlan(val_rate, seed, test_rate, group)
    if source is None:
        unfit = {
            "--format": source_format, "--val": val_rate, "--test": test_rate, "--group": group, "--folds": num_folds,
            "--one-based": one_based, "--copy-images": copy_images, "--on-invalid": drop_invalid,
            "--export": export_format, "--dry-run": dry_run, "--allow-unlisted": allow_unlisted,
            "--download": download,
        }  # fmt: skip
        flag = next((flag for flag, value in unfit.items() if value), None)
        if flag is not None:
            hint = "name the folder of your images; the demo set is made as it is, without a source"
            raise UsageError("needs a source", where=flag, hint=hint)
        return prepare_demo(out, seed=seed)
    if download:
        _fetch(source, source_format, on_note, on_bytes, dry_run=dry_run)
    options = ReadOptions(one_based=one_based, boxes=boxes, allow_unlisted=allow_unlisted)
    if export_format is not None:
        if num_folds is not None or copy_images:
            flag = "--folds" if num_folds is not None else "--copy-images"
            raise UsageError("does not go with --export, which copies the images as they are split", where=flag)
        return export(
            source,
            out,
            export_format,
            format=source_format,
            plan=plan,
            options=options,
            strict=strict,
            drop_invalid=drop_invalid,
            dry_run=dry_run,
        )
    return prepare(
        source,
        out,
        format=source_format,
        plan=plan,
        num_folds=num_folds,
        options=options,
        copy_images=copy_images,
        strict=strict,
        drop_invalid=drop_invalid,
        dry_run=dry_run,
    )


def _fetch(source: Path, source_format: str | None, on_note: Say, on_bytes: OnBytes | None, *, dry_run: bool) -> None:
    from core.annotations.coco_download import fetch_coco

    if source_format != "coco":
        raise UsageError("only COCO 2017 can be fetched", where="--download", hint="--format coco --download")
    if dry_run:
        raise UsageError("a dry run fetches nothing", where="--download", hint="leave out --download or --dry-run")
    fetch_coco(source, on_bytes=on_bytes, on_note=on_note)


def subsample(
    data: Path,
    rate: float | None = None,
    *,
    num_images: int | None = None,
    shots: int | None = None,
    stratify: bool = False,
    from_manifest: Path | None = None,
    seed: int | None = None,
    out: Path | None = None,
    dry_run: bool = False,
) -> SubsetReport:
    """Choose a seeded part of the training images; smaller parts of one seed lie inside larger ones.

    The arguments are those of `core.annotations.subsets.subsample`.

    Raises:
        UsageError: not one of `rate`, `num_images`, `shots` and `from_manifest` is given, or a number is out of range.
        DataError: there is no data set, it has a fault, or it lacks images of the manifest.
        MachineError: the subset cannot be written.
    """
    # What is wrong with the question is wrong whatever the data set is.
    asked_for(rate, seed, num_images=num_images, shots=shots, stratify=stratify, from_manifest=from_manifest)
    return choose_subset(
        open_dataset(data),
        rate,
        seed,
        out,
        num_images=num_images,
        shots=shots,
        stratify=stratify,
        from_manifest=from_manifest,
        dry_run=dry_run,
    )


def subsample_folds(
    data: Path, num_folds: int, *, seed: int | None = None, out: Path | None = None, dry_run: bool = False
) -> FoldsReport:
    """Part the training images into folds: for each a subset of the others to train on, and one of its own.

    The arguments are those of `core.annotations.subsets.subsample_folds`.

    Raises:
        UsageError: a number is out of range, or `out` is no folder.
        DataError: there is no data set, it has a fault, or fewer images than folds.
        MachineError: a subset cannot be written.
    """
    Selection(num_folds=num_folds, seed=seed or 0).check()
    return choose_folds(open_dataset(data), num_folds, seed, out, dry_run=dry_run)

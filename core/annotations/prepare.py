"""`prepare-data`: from a folder of annotations to a data set that every command reads, or to another format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from core.annotations.checks.look_alikes import look_alikes
from core.annotations.checks.repeats import Picture
from core.annotations.content import ReadOptions, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.load import LoadedSource, load_source
from core.annotations.prepare_report import PrepareReport, class_names, notes_of, report_splits
from core.annotations.prepared import write_dataset
from core.annotations.splits import SplitPlan, fold_source, parted_splits, split_source
from core.annotations.staging import replaced_notes, require_new_folder, require_replaceable, staged
from core.annotations.writers.images import copy_image
from core.annotations.writers.table import get_writer
from core.errors import UsageError
from core.files import join_within, require_writable_folder

_Splits = Mapping[str, SplitContent]


def prepare(
    source: Path,
    out: Path,
    *,
    format: str | None = None,  # noqa: A002 - the flag's name
    plan: SplitPlan | None = None,
    num_folds: int | None = None,
    options: ReadOptions | None = None,
    copy_images: bool = False,
    strict: bool = False,
    drop_invalid: bool = False,
    dry_run: bool = False,
) -> PrepareReport:
    """Make a prepared data set in `out`, whole or not at all.

    Args:
        source: a folder or file in one of the formats of `core.annotations.readers.table`.
        out: the folder to make; replaced if an earlier `prepare` made it, and nothing else was put into it.
        format: the source's format; by default it is recognised.
        plan: how images are put aside where the source has no lists of its own.
        num_folds: make so many data sets in `out`, fold-1 and so on, each with another part of the images as val.
        options: what the source does not say itself.
        copy_images: copy the images into `out`; by default their folder is recorded and they stay there.
        strict: refuse what is otherwise dropped or only noted: boxes of zero size, pictures in two splits.
        drop_invalid: leave out images and annotations that cannot be used; by default the first one is raised.
        dry_run: do all but write.

    Raises:
        UsageError: an argument cannot be used, or `out` is a folder that `prepare` did not make.
        DataError: the source has a fault.
        MachineError: `out` cannot be written.
    """
    plan, log = plan or SplitPlan(), FaultLog(drops=drop_invalid)
    if num_folds is None:
        require_replaceable(out, source)
    else:
        require_new_folder(out, source)
    if num_folds is not None and copy_images:
        raise UsageError("each fold would have copies of all images", where="--copy-images", hint="leave it out")
    require_writable_folder(out)
    options = replace(options or ReadOptions(), unpack=not dry_run)
    loaded = load_source(source, format, options, log, strict=strict)
    _require_outside(out, loaded)
    parted = parted_splits(loaded.source, plan, into_folds=num_folds is not None)
    repeats, alike_notes = _kept_together(loaded, parted)
    if num_folds is None:
        made = [split_source(loaded.source, plan, repeats)]
    else:
        made = fold_source(loaded.source, num_folds, plan, repeats)
    splits, notes = made[0]
    notes = [*notes, *alike_notes]
    where = "were copied" if copy_images else "stay where they are; --copy-images copies them"
    notes = [*loaded.notes, *notes, *notes_of(splits), f"the images {where}", *replaced_notes(out)]
    if not dry_run:
        with staged(out) as stage:
            for number, (own, _) in enumerate(made, start=1):
                folder = stage if num_folds is None else stage / f"fold-{number}"
                _write(folder, _name_of(source), own, source, copy_images=copy_images)
    return _report(out, loaded, splits, notes, log, was_written=not dry_run)


def export(
    source: Path,
    out: Path,
    target_format: str,
    *,
    format: str | None = None,  # noqa: A002 - the flag's name
    plan: SplitPlan | None = None,
    options: ReadOptions | None = None,
    strict: bool = False,
    drop_invalid: bool = False,
    dry_run: bool = False,
) -> PrepareReport:
    """Write a source in another format, with copies of its images; arguments and errors are those of `prepare`.

    Args:
        target_format: one of `core.annotations.writers.table`.
        out: a new or empty folder.
        plan: by default the source's splits stay as they are, also where it has no val split.
    """
    write = get_writer(target_format)
    is_parted = plan is not None and (plan.val_rate, plan.test_rate) != (None, None)
    if plan is not None and plan.group is not None and not is_parted:
        raise UsageError("nothing is put aside", where="--group", hint="say how much: --val 0.2, or --test 0.1")
    require_new_folder(out, source)
    require_writable_folder(out)
    log = FaultLog(drops=drop_invalid)
    options = replace(options or ReadOptions(), unpack=not dry_run)
    loaded = load_source(source, format, options, log, strict=strict)
    _require_outside(out, loaded)
    splits, notes = dict(loaded.source.splits), list[str]()
    if plan is not None and is_parted:
        repeats, alike_notes = _kept_together(loaded, ["train"])
        splits, notes = split_source(loaded.source, plan, repeats)
        notes += alike_notes
    written: list[str] = []
    if not dry_run:
        with staged(out) as stage:
            written = write(splits, stage)
    notes = [*loaded.notes, *notes, *notes_of(splits), *written]
    return _report(out, loaded, splits, notes, log, was_written=not dry_run)


def _require_outside(out: Path, loaded: LoadedSource) -> None:
    """Refuse to replace a folder that the images of the source lie in, as those of an earlier data set may."""
    for content in loaded.source.splits.values():
        if content.image_root.resolve().is_relative_to(out.resolve()):
            raise UsageError("the images of the source lie in it", where="--out", hint="name another folder")


def _kept_together(loaded: LoadedSource, parted: Sequence[str]) -> tuple[Mapping[Picture, Picture], list[str]]:
    """Return pictures and the one whose side of the split each has to stay on, and notes."""
    alike, notes = look_alikes({name: loaded.source.splits[name] for name in parted}, loaded.repeats)
    return {**alike, **loaded.repeats}, notes


def _write(folder: Path, name: str, splits: _Splits, source: Path, *, copy_images: bool) -> None:
    if copy_images:
        splits = {split: _copy_images(content, folder / "images" / split) for split, content in splits.items()}
    write_dataset(folder, name, splits, sources=[str(source.absolute())])


def _copy_images(content: SplitContent, folder: Path) -> SplitContent:
    for image in content.annotations.images:
        copy_image(content, image.file_name, join_within(folder, image.file_name))
    return replace(content, image_root=folder)


def _name_of(source: Path) -> str:
    """Name a data set by its folder or file; `data.yaml` says nothing, but its folder does."""
    source = source.absolute()
    if source.suffix in (".yaml", ".yml"):
        return source.parent.name
    return source.stem if source.is_file() else source.name


def _report(
    out: Path, loaded: LoadedSource, splits: _Splits, notes: list[str], log: FaultLog, *, was_written: bool
) -> PrepareReport:
    return PrepareReport(
        out,
        _name_of(loaded.source.path),
        loaded.source.format,
        class_names(splits),
        report_splits(splits),
        tuple(notes),
        faults=tuple(log.faults),
        was_written=was_written,
    )

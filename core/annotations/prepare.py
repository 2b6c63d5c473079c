"""`prepare-data`: from the demo set or a folder of annotations to a data set that every command reads."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.annotations import demo
from core.annotations.checks.images import check_images
from core.annotations.checks.repeats import find_repeats
from core.annotations.content import ReadOptions, Source, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.findings import Findings, count_findings
from core.annotations.prepared import count_boxes, require_same_classes, write_dataset
from core.annotations.readers.table import read_source
from core.annotations.splits import SplitPlan, split_source
from core.annotations.staging import replaced_notes, require_replaceable, staged
from core.errors import DataError, UsageError
from core.files import join_within


@dataclass(frozen=True)
class SplitReport:
    """What one split holds; `class_counts` are boxes by class name."""

    name: str
    num_images: int
    num_annotations: int
    num_empty_images: int
    class_counts: Mapping[str, int]
    findings: Findings


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` made.

    Attributes:
        root: the data set's folder.
        name: its name.
        format: the source's format, one of demo, voc, coco, cityscapes.
        classes: class names by rising id.
        splits: in the order train, val, test.
        notes: sentences for the user.
        unlabelled: the folder of unlabelled pictures that was written (demo only), or None.
        recipe: the preset that the data set recommends, or None.
    """

    root: Path
    name: str
    format: str
    classes: tuple[str, ...]
    splits: tuple[SplitReport, ...]
    notes: tuple[str, ...]
    unlabelled: Path | None = None
    recipe: str | None = None


def prepare(
    source: Path | None,
    out: Path,
    *,
    format: str | None = None,  # noqa: A002 - the flag's name
    plan: SplitPlan | None = None,
    options: ReadOptions | None = None,
    copy_images: bool = False,
    images_out: Path | None = None,
    strict: bool = False,
    drop_invalid: bool = False,
) -> PrepareReport:
    """Make a prepared data set in `out`, whole or not at all.

    Args:
        source: a folder or file in one of the formats of `core.annotations.readers.table`; None draws the demo set.
        out: the folder to make; replaced if an earlier `prepare` made it, and nothing else was put into it.
        format: the source's format; by default it is recognised.
        plan: how images are put aside for val where the source has no list for it; its seed is also that of the demo's
            drawings.
        options: what the source does not say itself.
        copy_images: copy the images into `out`; by default their folder is recorded and they stay there.
        images_out: where the demo's unlabelled pictures go; by default `images` beside `out`.
        strict: refuse what is otherwise dropped or only noted: boxes of zero size, pictures in two splits.
        drop_invalid: leave out images and annotations that cannot be used; by default the first one is raised.

    Raises:
        UsageError: an argument cannot be used, or `out` is a folder that `prepare` did not make.
        DataError: the source has a fault.
        MachineError: `out` cannot be written.
    """
    plan, options = plan or SplitPlan(), options or ReadOptions()
    if source is None and format is not None:
        raise UsageError(f"the format {format} needs a source", where="--format", hint="name its folder")
    require_replaceable(out, source)
    replaced = replaced_notes(out)
    if source is None:
        if plan.val_rate is not None or options.one_based or copy_images:
            flag = "--val" if plan.val_rate is not None else "--one-based" if options.one_based else "--copy-images"
            raise UsageError("does not apply to the demo set, which has a val split and its own images", where=flag)
        report = _prepare_demo(out, images_out or out.absolute().parent / "images", plan.seed)
        return dataclasses.replace(report, notes=(*report.notes, *replaced))
    log = FaultLog(drops=drop_invalid)
    read = read_source(source, format, options, log)
    report = _prepare_source(read, out, plan, log, copy_images=copy_images, strict=strict)
    return dataclasses.replace(report, notes=(*report.notes, *replaced))


def _prepare_demo(out: Path, images_out: Path, seed: int) -> PrepareReport:
    with staged(out) as stage:
        splits = demo.draw_demo_splits(stage / "images", seed)
        write_dataset(stage, "demo", splits, sources=[f"drawn by dedetr, seed {seed}"], recipe=demo.RECIPE)
    notes = ["the demo set: drawn, not photographed; each run draws the same pictures"]
    unlabelled: Path | None = images_out
    try:
        num_unlabelled = len(demo.draw_unlabelled(images_out, seed))
        notes.append(f"{num_unlabelled} unlabelled pictures to try `predict` on are in {images_out}")
    except DataError:
        unlabelled = None
        notes.append(f"{images_out} holds files of yours and was left alone: no unlabelled demo pictures written")
    return _report(out, "demo", "demo", splits, notes, unlabelled, demo.RECIPE)


def _prepare_source(
    source: Source, out: Path, plan: SplitPlan, log: FaultLog, *, copy_images: bool, strict: bool
) -> PrepareReport:
    source = dataclasses.replace(
        source, splits={split: _with_usable_images(split, content, log) for split, content in source.splits.items()}
    )
    for split, content in source.splits.items():
        first_name, first = next(iter(source.splits.items()))
        require_same_classes(first.annotations.categories, content.annotations.categories, first_name, split)
        if strict and content.findings.zero_size_boxes:
            raise DataError(
                "boxes without width or height",
                where=f"{source.path}, {split}",
                hint="remove them, or let them be dropped: without --strict",
                code="F08",
            )
    repeats = find_repeats(source.splits)
    splits, notes = split_source(source, plan, repeats)
    notes = [f"left out, {fault.title} ({fault.code}): {fault.count}" for fault in log.faults] + notes
    shared = [f"{a}/{name_a} = {b}/{name_b}" for (b, name_b), (a, name_a) in repeats.items() if a != b]
    if shared:
        message = f"pictures that are in two splits: {len(shared)}, such as {shared[0]}"
        if strict:
            raise DataError(message, where=str(source.path), hint="remove them from one of the splits", code="F27")
        notes.append(message)
    notes += [f"{split}: {note}" for split, content in splits.items() for note in content.findings.notes()]
    name = source.path.absolute().stem if source.path.is_file() else source.path.absolute().name
    with staged(out) as stage:
        if copy_images:
            splits = {split: _copy_images(content, stage / "images" / split) for split, content in splits.items()}
            notes.append("the images were copied")
        else:
            notes.append("the images stay where they are; --copy-images copies them")
        write_dataset(stage, name, splits, sources=[str(source.path.absolute())])
    return _report(out, name, source.format, splits, [*source.notes, *notes])


def _with_usable_images(split: str, content: SplitContent, log: FaultLog) -> SplitContent:
    usable = check_images(split, content.annotations, content.image_root, log)
    if usable is content.annotations:
        return content
    seen = content.findings
    return dataclasses.replace(
        content,
        annotations=usable,
        findings=count_findings(
            usable,
            zero_size_boxes=seen.zero_size_boxes,
            unlisted_annotations=seen.unlisted_annotations,
            difficult_boxes=seen.difficult_boxes,
        ),
    )


def _copy_images(content: SplitContent, folder: Path) -> SplitContent:
    for image in content.annotations.images:
        target = join_within(folder, image.file_name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(join_within(content.image_root, image.file_name), target)
    return dataclasses.replace(content, image_root=folder)


def _report(
    out: Path,
    name: str,
    source_format: str,
    splits: Mapping[str, SplitContent],
    notes: list[str],
    unlabelled: Path | None = None,
    recipe: str | None = None,
) -> PrepareReport:
    categories = sorted(next(iter(splits.values())).annotations.categories, key=lambda category: category.id)
    reports = tuple(
        SplitReport(
            split,
            len(content.annotations.images),
            len(content.annotations.annotations),
            content.findings.images_without_objects,
            count_boxes(content.annotations),
            content.findings,
        )
        for split, content in splits.items()
    )
    classes = tuple(category.name for category in categories)
    return PrepareReport(out, name, source_format, classes, reports, tuple(notes), unlabelled, recipe)

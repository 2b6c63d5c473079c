"""`prepare-data`: from the demo set or a folder of annotations to a data set that every command reads."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.annotations import demo
from core.annotations.findings import NUM_EXAMPLES, Findings, SplitContent, count_findings
from core.annotations.image_checks import check_images
from core.annotations.prepared import (
    FILE_NAME,
    MADE_BY,
    count_boxes,
    read_dataset_file,
    require_same_classes,
    write_dataset,
)
from core.annotations.sources import FORMATS, Source, read_source
from core.annotations.splits import DEFAULT_VAL_RATE, split_annotations
from core.errors import DataError, MachineError, UsageError, nearest
from core.files import join_within, machine_errors, sha256_of

_Picture = tuple[str, str]
"""Split and file name."""


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
    val_rate: float | None = None,
    seed: int = 0,
    one_based: bool = False,
    copy_images: bool = False,
    images_out: Path | None = None,
    strict: bool = False,
) -> PrepareReport:
    """Make a prepared data set in `out`, whole or not at all.

    Args:
        source: a folder or file in one of the formats of `core.annotations.sources`; None draws the demo set.
        out: the folder to make; replaced if an earlier `prepare` made it, and nothing else was put into it.
        format: the source's format; by default it is recognised.
        val_rate: the share of images for val where the source has no list for it; by default 0.2.
        seed: of that split, or of the demo's drawings.
        one_based: Pascal VOC edges count from 1.
        copy_images: copy the images into `out`; by default their folder is recorded and they stay there.
        images_out: where the demo's unlabelled pictures go; by default `images` beside `out`.
        strict: refuse what is otherwise dropped or only noted: boxes of zero size, pictures in two splits.

    Raises:
        UsageError: an argument cannot be used, or `out` is a folder that `prepare` did not make.
        DataError: the source has a fault.
        MachineError: `out` cannot be written.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"'{format}' is no format", where="--format", hint=nearest(format, FORMATS))
    if source is None and format not in (None, "demo"):
        raise UsageError(f"the format {format} needs a source", where="--format", hint="name its folder")
    if source is not None and format == "demo":
        raise UsageError("the demo set is made without a source", where="--format", hint="leave out the source")
    _require_replaceable(out, source)
    replaced = _replaced_notes(out)
    if source is None:
        if val_rate is not None or one_based or copy_images:
            flag = "--val" if val_rate is not None else "--one-based" if one_based else "--copy-images"
            raise UsageError("does not apply to the demo set, which has a val split and its own images", where=flag)
        report = _prepare_demo(out, images_out or out.absolute().parent / "images", seed)
        return dataclasses.replace(report, notes=(*report.notes, *replaced))
    read = read_source(source, format, one_based=one_based)
    report = _prepare_source(read, out, val_rate, seed, copy_images=copy_images, strict=strict)
    return dataclasses.replace(report, notes=(*report.notes, *replaced))


def _prepare_demo(out: Path, images_out: Path, seed: int) -> PrepareReport:
    with _staged(out) as stage:
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
    source: Source, out: Path, val_rate: float | None, seed: int, *, copy_images: bool, strict: bool
) -> PrepareReport:
    for split, content in source.splits.items():
        first_name, first = next(iter(source.splits.items()))
        require_same_classes(first.annotations.categories, content.annotations.categories, first_name, split)
        check_images(split, content.annotations, content.image_root)
        if strict and content.findings.zero_size_boxes:
            raise DataError(
                "boxes without width or height",
                where=f"{source.path}, {split}",
                hint="remove them, or let them be dropped: without --strict",
            )
    repeats = _repeated_pictures(source.splits)
    splits, notes = _with_val(source, val_rate, seed, repeats)
    shared = [f"{a}/{name_a} = {b}/{name_b}" for (b, name_b), (a, name_a) in repeats.items() if a != b]
    if shared:
        message = f"pictures that are in two splits: {len(shared)}, such as {shared[0]}"
        if strict:
            raise DataError(message, where=str(source.path), hint="remove them from one of the splits")
        notes.append(message)
    notes += [f"{split}: {note}" for split, content in splits.items() for note in content.findings.notes()]
    name = source.path.absolute().stem if source.path.is_file() else source.path.absolute().name
    with _staged(out) as stage:
        if copy_images:
            splits = {split: _copy_images(content, stage / "images" / split) for split, content in splits.items()}
            notes.append("the images were copied")
        else:
            notes.append("the images stay where they are; --copy-images copies them")
        write_dataset(stage, name, splits, sources=[str(source.path.absolute())])
    return _report(out, name, source.format, splits, [*source.notes, *notes])


def _with_val(
    source: Source, val_rate: float | None, seed: int, repeats: Mapping[_Picture, _Picture]
) -> tuple[dict[str, SplitContent], list[str]]:
    """Return the splits with a val split, put aside from train where the source has none, and notes."""
    splits = dict(source.splits)
    if "val" in splits and val_rate is not None:
        raise UsageError("the source has its own val split", where="--val", hint="leave it out")
    if "val" in splits or "train" not in splits:
        return splits, []
    rate = DEFAULT_VAL_RATE if val_rate is None else val_rate
    whole = splits.pop("train")
    same_as = {name: other for (split, name), (kept, other) in repeats.items() if split == kept == "train"}
    train, val = split_annotations(whole.annotations, rate, seed, same_as)
    num_all = len(whole.annotations.images)
    notes = [f"the source has no val split: {len(val.images)} of {num_all} images were put aside for it, seed {seed}"]
    if same_as:
        notes.append(f"pictures that repeat another, kept on its side of the split: {len(same_as)}")
    # What only the reader saw is known for the whole alone.
    seen = whole.findings
    notes += Findings(
        zero_size_boxes=seen.zero_size_boxes,
        unlisted_annotations=seen.unlisted_annotations,
        difficult_boxes=seen.difficult_boxes,
    ).notes()
    parts = {
        name: SplitContent(part, whole.image_root, count_findings(part))
        for name, part in (("train", train), ("val", val))
    }
    return {**parts, **splits}, notes


def _repeated_pictures(splits: Mapping[str, SplitContent]) -> dict[_Picture, _Picture]:
    """Map every picture whose file equals an earlier one's to that one; only files of equal length are read."""
    of_length: dict[int, list[tuple[_Picture, Path]]] = defaultdict(list)
    for split, content in splits.items():
        for image in content.annotations.images:
            path = join_within(content.image_root, image.file_name)
            of_length[path.stat().st_size].append(((split, image.file_name), path))
    repeats: dict[_Picture, _Picture] = {}
    for files in of_length.values():
        first_of_hash: dict[str, _Picture] = {}
        for picture, path in files if len(files) > 1 else ():
            first = first_of_hash.setdefault(sha256_of(path), picture)
            if first != picture:
                repeats[picture] = first
    return repeats


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


def _require_replaceable(out: Path, source: Path | None) -> None:
    """Refuse an `out` that is not ours to replace."""
    target = out.resolve()
    if out.exists() and not out.is_dir():
        raise MachineError("cannot make the data set: a file of this name exists", where=str(out))
    if target == Path.cwd():
        raise UsageError("the data set cannot replace the current folder", where="--out", hint="name a folder in it")
    if source is not None and source.resolve().is_relative_to(target):
        raise UsageError(
            f"the source {source} is the output folder or in it", where="--out", hint="name another folder"
        )
    if not out.is_dir() or not any(out.iterdir()):
        return
    hint = "name another folder with --out, or move this one away"
    try:
        is_ours = read_dataset_file(out).made_by == MADE_BY
    except DataError:
        is_ours = False
    if not is_ours:
        raise UsageError("the folder is not empty, and `prepare-data` did not make it", where=str(out), hint=hint)
    foreign = sorted({path.name for path in out.iterdir()} - {FILE_NAME, "annotations", "images"})
    if foreign:
        raise UsageError(f"the folder also holds {', '.join(foreign[:NUM_EXAMPLES])}", where=str(out), hint=hint)


def _replaced_notes(out: Path) -> list[str]:
    num_subsets = len(list((out / "annotations").glob("*.manifest.json")))
    return [f"subset files of the earlier data set in {out}, removed with it: {num_subsets}"] if num_subsets else []


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to write to, which takes its place when all went well and else disappears."""
    target = out.resolve()
    with machine_errors(out, "write the data set"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp") as holder:
            stage, earlier = Path(holder) / "new", Path(holder) / "earlier"
            stage.mkdir()
            yield stage
            if target.exists():
                target.replace(earlier)
            try:
                stage.replace(target)
            except BaseException:  # Ctrl-C too: the folder that holds the earlier data set is about to go
                if earlier.exists():
                    earlier.replace(target)
                raise

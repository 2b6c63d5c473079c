"""A source, read and checked: what can be used of it, and what was found wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core.annotations.checks.images import check_images
from core.annotations.checks.repeats import Picture, find_repeats
from core.annotations.content import ReadOptions, Source, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.findings import count_findings
from core.annotations.prepared import require_same_classes
from core.annotations.readers.table import read_source
from core.errors import DataError

_OF_BOXES = ("F05", "F06", "F07", "F08", "F09", "F10")
"""Codes of faults that each cost one box."""


@dataclass(frozen=True)
class LoadedSource:
    """A source whose images are there and whole.

    Attributes:
        source: as read, less what the log let go.
        repeats: pictures that repeat an earlier one, and that one.
        notes: sentences for the user.
    """

    source: Source
    repeats: Mapping[Picture, Picture]
    notes: tuple[str, ...]


def load_source(
    path: Path, format_name: str | None, options: ReadOptions, log: FaultLog, *, strict: bool = False
) -> LoadedSource:
    """Read a source and look at its images.

    Args:
        path: a folder or file in one of the formats of `core.annotations.readers.table`.
        format_name: its format; None: recognised.
        options: what the source does not say itself.
        log: is told of images and annotations that cannot be used.
        strict: refuse boxes of zero size, which are dropped, and pictures in two splits, which are noted.

    Raises:
        DataError: the source has a fault.
        UsageError: the format or an option does not fit it.
    """
    source = read_source(path, format_name, options, log)
    splits = {split: _with_usable_images(split, content, log) for split, content in source.splits.items()}
    first_name, first = next(iter(splits.items()))
    for split, content in splits.items():
        require_same_classes(first.annotations.categories, content.annotations.categories, first_name, split)
        if strict and content.findings.zero_size_boxes:
            raise DataError(
                "boxes without width or height",
                where=f"{path}, {split}",
                hint="remove them, or let them be dropped: without --strict",
                code="F08",
            )
    _require_boxes(splits, path)
    _require_most(splits, log, path)
    repeats = find_repeats(splits)
    notes = list(source.notes)
    notes += [f"left out, {fault.title} ({fault.code}): {fault.count}" for fault in log.faults]
    shared = [f"{a}/{name_a} = {b}/{name_b}" for (b, name_b), (a, name_a) in repeats.items() if a != b]
    if shared:
        message = f"pictures that are in two splits: {len(shared)}, such as {shared[0]}"
        if strict:
            hint = "remove them from one of the splits"
            raise DataError(message, where=str(path), hint=hint, code="F27", places=shared)
        notes.append(message)
    return LoadedSource(replace(source, splits=splits), repeats, tuple(notes))


def _require_boxes(splits: Mapping[str, SplitContent], path: Path) -> None:
    train = splits.get("train")
    if train is not None and all(annotation.is_crowd for annotation in train.annotations.annotations):
        raise DataError("the training images hold no box to learn from", where=f"{path}, train", code="F13")


def _require_most(splits: Mapping[str, SplitContent], log: FaultLog, path: Path) -> None:
    """Refuse to go on with the lesser half of the boxes: what is left is likely to be wrong for the same reason."""
    num_kept = sum(len(content.annotations.annotations) for content in splits.values())
    dropped = [fault for fault in log.faults if fault.code in _OF_BOXES]
    num_dropped = sum(fault.count for fault in dropped)
    if num_dropped > num_kept:
        worst = max(dropped, key=lambda fault: fault.count)
        raise DataError(
            f"{num_dropped} of {num_kept + num_dropped} boxes cannot be used, most for this: {worst.message}",
            where=worst.where or str(path),
            hint="mend what is wrong with all of them; --on-invalid drop is for the few",
            code=worst.code,
            places=worst.places,
        )


def _with_usable_images(split: str, content: SplitContent, log: FaultLog) -> SplitContent:
    usable = check_images(split, content.annotations, content.image_root, log)
    if usable is content.annotations:
        return content
    seen = content.findings
    findings = count_findings(
        usable,
        zero_size_boxes=seen.zero_size_boxes,
        unlisted_annotations=seen.unlisted_annotations,
        difficult_boxes=seen.difficult_boxes,
    )
    return replace(content, annotations=usable, findings=findings)

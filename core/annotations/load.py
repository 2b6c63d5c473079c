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

"""The annotations of a split as training and evaluation take them: read, checked, with images that are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from core.annotations.checks.images import check_images
from core.annotations.checks.quick import remembered_check
from core.annotations.faults import FaultLog
from core.annotations.prepared import get_split, read_split
from core.annotations.records import AnnotationSet, PreparedDataset


def read_checked_split(
    dataset: PreparedDataset,
    name: str,
    annotation_file: Path | None = None,
    *,
    drop_invalid: bool = False,
    check_files: bool = True,
    on_note: Callable[[str], None],
) -> AnnotationSet:
    """Read the annotations of a split, or of a subset file of it, and look at its images as far as they have changed.

    Args:
        dataset: the data set.
        name: of the split.
        annotation_file: of a subset; None: the split's own.
        drop_invalid: leave out images and annotations that cannot be used; by default they are raised.
        check_files: whether to look at the images. Where those that cannot be used are left out, they are looked at in
            any case: all processes of a run must leave out the same.
        on_note: is told what is unusual, and what was left out.

    Raises:
        DataError: the split is missing, it or one of its images has a fault, or nothing is left.
    """
    log = FaultLog(drops=drop_invalid)
    annotations, findings = read_split(dataset, name, annotation_file, log=log)
    if check_files or drop_invalid:
        image_root = get_split(dataset, name).image_root
        with remembered_check(image_root) as check:
            annotations = check_images(name, annotations, image_root, log, check)
    for note in findings.notes():
        on_note(f"{name}: {note}")
    if name != "train" and all(annotation.is_crowd for annotation in annotations.annotations):
        on_note(f"{name}: no boxes: there is nothing to measure, so that all its numbers will be empty")
    for fault in log.faults:
        on_note(f"{name}: left out, {fault.title} ({fault.code}): {fault.count}")
    return annotations

"""What `prepare-data` says it has made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.annotations.content import SplitContent
from core.annotations.faults import Fault
from core.annotations.findings import Findings
from core.annotations.prepared import count_boxes


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
        root: the folder.
        name: of the data set.
        format: the source's format as `--format` names it, or demo.
        classes: class names by rising id.
        splits: in the order train, val, test; of folds, those of the first.
        notes: sentences for the user.
        unlabelled: the folder of unlabelled pictures that was written (demo only), or None.
        recipe: the preset that the data set recommends, or None.
        faults: what was left out, by code.
        was_written: False after a dry run.
    """

    root: Path
    name: str
    format: str
    classes: tuple[str, ...]
    splits: tuple[SplitReport, ...]
    notes: tuple[str, ...]
    unlabelled: Path | None = None
    recipe: str | None = None
    faults: tuple[Fault, ...] = ()
    was_written: bool = True


def report_splits(splits: Mapping[str, SplitContent]) -> tuple[SplitReport, ...]:
    """Return what each split holds."""
    return tuple(
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


def class_names(splits: Mapping[str, SplitContent]) -> tuple[str, ...]:
    """Return the names of the classes, the same in all splits, by rising id."""
    first = next(iter(splits.values())).annotations
    return tuple(category.name for category in sorted(first.categories, key=lambda category: category.id))


def notes_of(splits: Mapping[str, SplitContent]) -> Sequence[str]:
    """Return what was noticed in each split."""
    return [f"{split}: {note}" for split, content in splits.items() for note in content.findings.notes()]

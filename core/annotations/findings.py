"""What a reader notices in annotations that is no error, and how a reader says what is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.annotations.faults import Fault, Severity
from core.annotations.records import AnnotationSet
from core.errors import DataError

NUM_EXAMPLES = 5
"""How many places an error names before it only counts."""


@dataclass(frozen=True)
class Findings:
    """Counts of what is unusual, yet accepted.

    Attributes:
        zero_size_boxes: boxes without width or height; they were dropped.
        partly_outside_boxes: boxes that reach over an image's edge; they stay as they are.
        unlisted_annotations: annotations of images that the file does not list; they were left out.
        crowd_boxes: boxes around groups of objects (COCO's `iscrowd`).
        difficult_boxes: boxes marked `difficult` (Pascal VOC); they stay, as any other.
        images_without_objects: images that no annotation belongs to.
        classes_without_instances: names of classes that no annotation belongs to.
    """

    zero_size_boxes: int = 0
    partly_outside_boxes: int = 0
    unlisted_annotations: int = 0
    crowd_boxes: int = 0
    difficult_boxes: int = 0
    images_without_objects: int = 0
    classes_without_instances: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Return one line for every finding that a user should know of."""
        return [f"{sentence}: {count}" for _, _, count, sentence in self._sentences() if count] + self._empty_classes()

    def faults(self, where: str) -> list[Fault]:
        """Return the same with codes; `where` names the split."""
        found = [
            Fault(code, severity, sentence, where, count=count)
            for code, severity, count, sentence in self._sentences()
            if count and code
        ]
        empty = self.classes_without_instances
        found += [Fault("F18", "warning", note, where, None, len(empty), empty) for note in self._empty_classes()]
        return found

    def _sentences(self) -> list[tuple[str, Severity, int, str]]:
        return [
            ("F08", "warning", self.zero_size_boxes, "boxes without width or height, dropped"),
            (
                "F10",
                "note",
                self.partly_outside_boxes,
                "boxes that reach over an image's edge, clipped when they are trained on",
            ),
            (
                "F06",
                "warning",
                self.unlisted_annotations,
                "annotations of images that the file does not list, left out",
            ),
            ("F15", "note", self.crowd_boxes, "crowds, which are not trained on and ignored in evaluation"),
            ("", "note", self.difficult_boxes, "boxes marked difficult, used as any other"),
            ("F12", "note", self.images_without_objects, "images without objects, used as negatives"),
        ]

    def _empty_classes(self) -> list[str]:
        empty = self.classes_without_instances
        more = f" and {len(empty) - NUM_EXAMPLES} more" if len(empty) > NUM_EXAMPLES else ""
        return [f"classes without instances: {', '.join(empty[:NUM_EXAMPLES])}{more}"] if empty else []


def count_findings(
    annotations: AnnotationSet,
    *,
    zero_size_boxes: int = 0,
    unlisted_annotations: int = 0,
    difficult_boxes: int = 0,
) -> Findings:
    """Count what an annotation set itself shows; the arguments add what only its reader saw."""
    rows, boxes_xywh_px = annotations.image_rows, annotations.boxes_xywh_px
    starts, ends = boxes_xywh_px[:, :2], boxes_xywh_px[:, :2] + boxes_xywh_px[:, 2:]
    reaches_over = np.any((starts < 0) | (ends > annotations.image_sizes_wh_px[rows]), axis=1)
    per_class = Counter(annotation.category_id for annotation in annotations.annotations)
    return Findings(
        zero_size_boxes=zero_size_boxes,
        partly_outside_boxes=int(reaches_over.sum()),
        unlisted_annotations=unlisted_annotations,
        crowd_boxes=sum(annotation.is_crowd for annotation in annotations.annotations),
        difficult_boxes=difficult_boxes,
        images_without_objects=len(annotations.images) - len(np.unique(rows)),
        classes_without_instances=tuple(c.name for c in annotations.categories if not per_class[c.id]),
    )


def refuse(file: Path, places: Sequence[str], reason: str, hint: str | None = None, *, code: str) -> DataError:
    """Return the error of one fault at one or more places of a file: the first few named, all counted."""
    if len(places) > 1:
        shown = ", ".join(places[:NUM_EXAMPLES]) + (", ..." if len(places) > NUM_EXAMPLES else "")
        reason = f"{reason} ({len(places)} such: {shown})"
    all_places = [f"{file}: {place}" for place in places]
    return DataError(reason, where=all_places[0], hint=hint, code=code, places=all_places)

"""Precision and recall as COCO defines them: computed by pycocotools, or by hotcoco, which gives the same numbers.

Both are given the same tables. Images and classes are numbered by rising id, which is the order that pycocotools works
in: among equal scores it decides which detection comes first.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from core.annotations.records import AnnotationSet, Category
from core.errors import MachineError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroundTruth:
    """What should be found in a split: M boxes in I images, of C classes.

    Attributes:
        image_ids: I of them, rising.
        categories: C of them, by rising id.
        image_rows: (M,) in 0..I-1.
        class_rows: (M,) in 0..C-1.
        boxes_xywh_px: (M, 4).
        areas: (M,) in square pixels.
        is_crowd: (M,).
    """

    image_ids: tuple[int, ...]
    categories: tuple[Category, ...]
    image_rows: Integers
    class_rows: Integers
    boxes_xywh_px: Floats
    areas: Floats
    is_crowd: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DetectionTable:
    """What was found in the same images: N boxes, numbered alike.

    Attributes:
        image_rows: (N,) in 0..I-1.
        class_rows: (N,) in 0..C-1.
        boxes_xywh_px: (N, 4).
        scores: (N,).
    """

    image_rows: Integers
    class_rows: Integers
    boxes_xywh_px: Floats
    scores: Floats


@dataclass(frozen=True)
class PrecisionRecall:
    """pycocotools' arrays; -1 where no annotated box counts.

    Attributes:
        precision: (10, 101, C, 4, 3): IoU, recall, class, area (all, small, medium, large), most detections.
        recall: (10, C, 4, 3): likewise.
    """

    precision: Floats
    recall: Floats


class Backend(Protocol):
    """Compares detections with one ground truth, as often as asked."""

    name: str

    def __init__(self, ground_truth: GroundTruth) -> None: ...

    def score(self, detections: DetectionTable, max_detections: int) -> PrecisionRecall:
        """Return precision and recall with at most 1, 10 and `max_detections` detections of a class in an image."""
        ...


def choose_backend(name: str) -> type[Backend]:
    """Return a backend by the name that `run.evaluator` has for it; auto is hotcoco where it is installed.

    Raises:
        MachineError: hotcoco is asked for, and is not installed or of another version than was compared.
    """
    if name == "pycocotools":
        return PycocotoolsBackend
    fault = _hotcoco_fault()
    if fault is None:
        return HotcocoBackend
    if name == "auto":
        return PycocotoolsBackend
    raise MachineError(
        fault,
        where="run.evaluator",
        hint="python -m pip install 'dedetr[fast-eval]', "
        "or use run.evaluator=pycocotools, which gives the same numbers",
    )


def _hotcoco_fault() -> str | None:
    """Return why hotcoco cannot be used; None: it can."""
    try:
        import hotcoco
    except ImportError as error:
        return f"hotcoco is not installed ({error})"
    major, minor, *_ = hotcoco.__version__.split(".")
    # Only of these versions is it known that their numbers are those of pycocotools.
    if major != "1" or int(minor) < 3:
        return f"hotcoco is {hotcoco.__version__}, and must be at least 1.3 and below 2"
    return None


class PycocotoolsBackend:
    """The reference."""

    name = "pycocotools"

    def __init__(self, ground_truth: GroundTruth) -> None:
        self._num_images = len(ground_truth.image_ids)
        self._num_classes = len(ground_truth.categories)
        self._ground_truth = self._index(
            _as_dicts(
                ground_truth.image_rows,
                ground_truth.class_rows,
                ground_truth.boxes_xywh_px,
                area=ground_truth.areas,
                iscrowd=ground_truth.is_crowd.astype(np.int64),
            )
        )

    def score(self, detections: DetectionTable, max_detections: int) -> PrecisionRecall:
        """Return precision and recall; see `Backend`."""
        boxes = detections.boxes_xywh_px
        found = self._index(
            _as_dicts(
                detections.image_rows,
                detections.class_rows,
                boxes,
                area=boxes[:, 2] * boxes[:, 3],
                iscrowd=np.zeros(len(boxes), dtype=np.int64),
                score=detections.scores,
            )
        )
        # pycocotools prints; stdout belongs to the command's result.
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._ground_truth, found, "bbox")
            evaluation.params.maxDets = [1, 10, max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
        return PrecisionRecall(evaluation.eval["precision"], evaluation.eval["recall"])

    def _index(self, annotations: list[dict[str, Any]]) -> COCO:
        """Do what pycocotools' constructor and `loadRes` do; the latter fails on an empty list."""
        coco = COCO()
        coco.dataset = {
            "images": [{"id": row} for row in range(self._num_images)],
            "annotations": annotations,
            "categories": [{"id": row} for row in range(self._num_classes)],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco


class HotcocoBackend:
    """hotcoco: the same arrays to the last bit, many times sooner."""

    name = "hotcoco"

    def __init__(self, ground_truth: GroundTruth) -> None:
        import hotcoco

        self._table = ground_truth
        self._ground_truth = hotcoco.COCO.from_arrays(
            [{"id": row} for row in range(len(ground_truth.image_ids))],
            [{"id": row, "name": str(row)} for row in range(len(ground_truth.categories))],
            ground_truth.image_rows,
            ground_truth.class_rows,
            ground_truth.boxes_xywh_px,
            area=ground_truth.areas,
            iscrowd=ground_truth.is_crowd,
        )

    def score(self, detections: DetectionTable, max_detections: int) -> PrecisionRecall:
        """Return precision and recall; see `Backend`."""
        import hotcoco

        if np.isnan(detections.boxes_xywh_px).any() or np.isnan(detections.scores).any():
            # pycocotools has numbers even then; hotcoco has others, or refuses.
            return PycocotoolsBackend(self._table).score(detections, max_detections)
        columns = (detections.image_rows, detections.boxes_xywh_px, detections.scores, detections.class_rows)
        found = self._ground_truth.load_res(np.column_stack(columns))
        evaluation = hotcoco.COCOeval(self._ground_truth, found, "bbox")
        evaluation.params.max_dets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        arrays = evaluation.eval or {}
        return PrecisionRecall(arrays["precision"], arrays["recall"])


def tabulate(annotations: AnnotationSet) -> GroundTruth:
    """Return the annotations of a split as arrays, in the file's order."""
    image_ids = sorted(image.id for image in annotations.images)
    categories = sorted(annotations.categories, key=lambda category: category.id)
    image_row = {image_id: row for row, image_id in enumerate(image_ids)}
    class_row = {category.id: row for row, category in enumerate(categories)}
    boxes = annotations.annotations
    return GroundTruth(
        image_ids=tuple(image_ids),
        categories=tuple(categories),
        image_rows=np.array([image_row[box.image_id] for box in boxes], dtype=np.int64),
        class_rows=np.array([class_row[box.category_id] for box in boxes], dtype=np.int64),
        boxes_xywh_px=annotations.boxes_xywh_px,
        areas=np.array([box.area for box in boxes], dtype=np.float64),
        is_crowd=np.array([box.is_crowd for box in boxes], dtype=np.bool_),
    )


def _as_dicts(
    image_rows: Integers, class_rows: Integers, boxes_xywh_px: Floats, **others: npt.NDArray[Any]
) -> list[dict[str, Any]]:
    """Return a row of each table as pycocotools reads it."""
    columns = {
        # pycocotools takes id 0 for "not matched", so ids are counted from 1.
        "id": range(1, len(image_rows) + 1),
        "image_id": image_rows.tolist(),
        "category_id": class_rows.tolist(),
        "bbox": boxes_xywh_px.tolist(),
    } | {name: column.tolist() for name, column in others.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

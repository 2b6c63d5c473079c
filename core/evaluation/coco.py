"""Average precision and recall as COCO defines them, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from core.annotations.records import AnnotationSet, Category
from core.structures import Detections

STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class ClassResult:
    """How well one class is found.

    Attributes:
        category: the class.
        ap: over IoU 0.50:0.95, in [0, 1]; None where the class has no box (crowds aside).
        ap50: at IoU 0.50; None likewise.
        num_boxes: annotated boxes, crowds aside.
    """

    category: Category
    ap: float | None
    ap50: float | None
    num_boxes: int


@dataclass(frozen=True)
class EvaluationResult:
    """The numbers of one evaluation.

    Attributes:
        stats: COCO's twelve by the names in `STAT_NAMES`, each in [0, 1]; None where no annotated box counts.
            AR100 and the APs and ARs by size are at `max_detections` an image.
        per_class: by rising category id.
        num_images: images evaluated.
        num_detections: detections of all images, those beyond `max_detections` too.
        max_detections: how many detections of a class in an image count.
    """

    stats: dict[str, float | None]
    per_class: tuple[ClassResult, ...]
    num_images: int
    num_detections: int
    max_detections: int = 100


class CocoEvaluator:
    """Collects the detections of every image, then scores them all.

    Crowds (`is_crowd`) are neither found nor missed, as pycocotools has it.

    Args:
        annotations: what should be found.
        classes: the classes by label; detections of a class that the annotations do not have are not scored.
    """

    def __init__(self, annotations: AnnotationSet, classes: Sequence[Category]) -> None:
        self.annotations = annotations
        self.classes = tuple(classes)
        self._image_ids = {image.id for image in annotations.images}
        self._detections: dict[int, Detections] = {}

    @property
    def detections(self) -> Mapping[int, Detections]:
        """What was added, by image id."""
        return self._detections

    def add(self, image_id: int, detections: Detections) -> None:
        """Take the detections of one image, in pixels of the original image.

        Raises:
            ValueError: the image is not of this set, or was added before.
        """
        if image_id not in self._image_ids:
            raise ValueError(f"image id {image_id} is not in the annotations")
        if image_id in self._detections:
            raise ValueError(f"image id {image_id} was evaluated twice")
        self._detections[image_id] = detections

    def to_coco_results(self) -> list[dict[str, Any]]:
        """Return all detections as a COCO results list: original category ids, boxes as xywh in pixels."""
        results: list[dict[str, Any]] = []
        for image_id, detections in self._detections.items():
            boxes = detections.boxes_xyxy_px.detach().cpu().double().numpy()
            boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
            rows = zip(boxes_xywh.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
            for box, score, label in rows:
                category_id = self.classes[label].id
                results.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": score})
        return results

    def compute(self, max_detections: int = 100) -> EvaluationResult:
        """Score the detections of all images.

        Args:
            max_detections: how many of a class in an image count, those of the highest scores; at least 10.

        Raises:
            ValueError: an image was not added.
        """
        missing = self._image_ids - self._detections.keys()
        if missing:
            raise ValueError(f"{len(missing)} images were not evaluated, such as id {min(missing)}")
        results = self.to_coco_results()
        # pycocotools prints; stdout belongs to the command's result.
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._ground_truth(), self._results(results), "bbox")
            evaluation.params.maxDets = [1, 10, max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
        # Axes: (IoU, recall, class, area, max detections) and (IoU, class, area, max detections).
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        counts = Counter(a.category_id for a in self.annotations.annotations if not a.is_crowd)
        per_class = tuple(
            ClassResult(
                category,
                _mean(precision[:, :, row, 0, -1]),
                _mean(precision[0, :, row, 0, -1]),
                counts[category.id],
            )
            # pycocotools' own order
            for row, category in enumerate(sorted(self.annotations.categories, key=lambda category: category.id))
        )
        return EvaluationResult(
            stats=_stats(precision, recall),
            per_class=per_class,
            num_images=len(self._image_ids),
            num_detections=len(results),
            max_detections=max_detections,
        )

    def _ground_truth(self) -> COCO:
        annotations = [
            {
                "id": row,
                "image_id": annotation.image_id,
                "category_id": annotation.category_id,
                "bbox": list(annotation.box_xywh_px),
                "area": annotation.area,
                "iscrowd": int(annotation.is_crowd),
            }
            # pycocotools takes id 0 for "not matched", so ids are counted from 1.
            for row, annotation in enumerate(self.annotations.annotations, start=1)
        ]
        return self._coco(annotations)

    def _results(self, results: list[dict[str, Any]]) -> COCO:
        """Do what pycocotools' `loadRes` does, which fails on an empty list."""
        detections = [
            {**result, "id": row, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
            for row, result in enumerate(results, start=1)
        ]
        return self._coco(detections)

    def _coco(self, annotations: list[dict[str, Any]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image.id} for image in self.annotations.images],
            "annotations": annotations,
            "categories": [{"id": category.id, "name": category.name} for category in self.annotations.categories],
        }
        coco.createIndex()
        return coco


def _stats(precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """Return the twelve numbers; IoU 0.50 is at index 0 and 0.75 at 5, areas are all, small, medium, large."""
    values = [
        _mean(precision[..., 0, -1]),
        _mean(precision[0, :, :, 0, -1]),
        _mean(precision[5, :, :, 0, -1]),
        *(_mean(precision[..., area, -1]) for area in (1, 2, 3)),
        *(_mean(recall[..., 0, limit]) for limit in (0, 1, 2)),
        *(_mean(recall[..., area, -1]) for area in (1, 2, 3)),
    ]
    return dict(zip(STAT_NAMES, values, strict=True))


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """Return the mean of what is defined: pycocotools writes -1 where no annotated box counts."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None

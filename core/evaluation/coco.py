"""Average precision and recall as COCO defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from core.annotations.records import AnnotationSet, Category
from core.evaluation.backends import Backend, DetectionTable, choose_backend, tabulate
from core.structures import Detections

STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

_NOTHING = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


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
    """Collects the detections of every image of a split, then scores them all, as often as asked.

    Crowds (`is_crowd`) are neither found nor missed, as pycocotools has it. What does not depend on the detections is
    made once.

    Args:
        annotations: what should be found.
        classes: the classes by label; detections of a class that the annotations do not have are not scored.
        backend: who computes: pycocotools, hotcoco, or auto for hotcoco where it is installed. The numbers are the
            same.

    Raises:
        MachineError: the backend is not installed.
    """

    def __init__(
        self, annotations: AnnotationSet, classes: Sequence[Category], *, backend: str = "pycocotools"
    ) -> None:
        self.annotations = annotations
        self.classes = tuple(classes)
        self._backend_class = choose_backend(backend)
        self._ground_truth = ground_truth = tabulate(annotations)
        self._num_boxes = np.bincount(
            ground_truth.class_rows[~ground_truth.is_crowd], minlength=len(ground_truth.categories)
        ).tolist()
        self._image_row = {image_id: row for row, image_id in enumerate(ground_truth.image_ids)}
        class_row = {category.id: row for row, category in enumerate(ground_truth.categories)}
        self._class_row_of_label = np.array([class_row.get(c.id, -1) for c in self.classes], dtype=np.int64)
        self._detections: dict[int, Detections] = {}

    @property
    def backend_name(self) -> str:
        """Who computes: pycocotools or hotcoco."""
        return self._backend_class.name

    @property
    def detections(self) -> Mapping[int, Detections]:
        """What was added, by image id."""
        return self._detections

    def add(self, image_id: int, detections: Detections) -> None:
        """Take the detections of one image, in pixels of the original image.

        Raises:
            ValueError: the image is not of this set, or was added before.
        """
        if image_id not in self._image_row:
            raise ValueError(f"image id {image_id} is not in the annotations")
        if image_id in self._detections:
            raise ValueError(f"image id {image_id} was evaluated twice")
        self._detections[image_id] = detections

    def clear(self) -> None:
        """Forget all detections."""
        self._detections = {}

    def compute(self, max_detections: int = 100) -> EvaluationResult:
        """Score the detections of all images.

        Args:
            max_detections: how many of a class in an image count, those of the highest scores; at least 10.

        Raises:
            ValueError: an image was not added.
        """
        missing = self._image_row.keys() - self._detections.keys()
        if missing:
            raise ValueError(f"{len(missing)} images were not evaluated, such as id {min(missing)}")
        found = self._backend.score(self._table(), max_detections)
        per_class = tuple(
            ClassResult(
                category,
                _mean(found.precision[:, :, row, 0, -1]),
                _mean(found.precision[0, :, row, 0, -1]),
                num_boxes,
            )
            for row, (category, num_boxes) in enumerate(
                zip(self._ground_truth.categories, self._num_boxes, strict=True)
            )
        )
        return EvaluationResult(
            stats=_stats(found.precision, found.recall),
            per_class=per_class,
            num_images=len(self._image_row),
            num_detections=sum(map(len, self._detections.values())),
            max_detections=max_detections,
        )

    @cached_property
    def _backend(self) -> Backend:
        return self._backend_class(self._ground_truth)

    def _table(self) -> DetectionTable:
        """Return what was added as one table, without the classes that the annotations do not have."""
        found = [*self._detections.values(), _NOTHING]
        boxes = torch.cat([detections.boxes_xyxy_px.cpu() for detections in found]).detach().double().numpy()
        scores = torch.cat([detections.scores.cpu() for detections in found]).detach().double().numpy()
        labels = torch.cat([detections.labels.cpu() for detections in found]).numpy()
        image_rows = np.array([self._image_row[image_id] for image_id in self._detections], dtype=np.int64)
        image_rows = image_rows.repeat([len(detections) for detections in self._detections.values()])
        class_rows = self._class_row_of_label[labels]
        boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        known = class_rows >= 0
        return DetectionTable(image_rows[known], class_rows[known], boxes_xywh[known], scores[known])


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

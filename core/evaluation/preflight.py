"""Does perfect work score perfectly? The ground truth, sent through everything but the model.

A wrong class map, a wrong box format or a fault in a transform lowers a model's score without an error. Here
the annotations of some images go through data set, transform and target, come back as detections, and are
scored. Anything but a nearly perfect score is a fault, found before hours of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from msgspec import structs

from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.datasets.batches import Batch, collate
from core.datasets.dataset import DetectionDataset
from core.errors import DataError
from core.evaluation.coco import CocoEvaluator, EvaluationResult
from core.ops.boxes import cxcywh_to_xyxy, norm_to_px
from core.structures import Detections

MIN_AP = 0.99
"""The least AP that a replay must reach."""

COMMON_MAX_DETECTIONS = 100

# Boxes of whole objects reach beyond an image whose edge cuts the objects off: right, if rare. Then hardly any
# set of boxes would fit its images if each were read as two corners, and a set of corners always does.
_FITS_AS_CORNERS = 0.9


@dataclass(frozen=True)
class PreflightResult:
    """What a replay found.

    Attributes:
        ap: of the annotations as perfect detections, against the annotations as written: what the best of
            models could reach. Less than `MIN_AP` only where boxes reach far beyond their images. None where
            the sample has no boxes.
        num_images: images in the sample.
        num_boxes: boxes in it, crowds aside.
        num_boxes_outside: boxes of these that reach beyond their image, by more than rounding.
        images_over_limit: file names of images with more boxes than the 100 detections that COCO counts.
    """

    ap: float | None
    num_images: int
    num_boxes: int
    num_boxes_outside: int
    images_over_limit: tuple[str, ...]


def replay_ground_truth(
    dataset: DetectionDataset,
    annotations: AnnotationSet,
    classes: Sequence[Category],
    *,
    split: str,
    sample_size: int = 64,
) -> PreflightResult:
    """Score a split's own annotations as if a model had found them.

    Args:
        dataset: of the whole split, with the transform of evaluation; crowds dropped or not.
        annotations: what the split's evaluation compares with.
        classes: the classes by label, as evaluation names them.
        split: its name, for messages.
        sample_size: about how many images to read, taken evenly from those with boxes.

    Raises:
        DataError: an image cannot be read, class names contradict each other, or the score is below `MIN_AP`.
    """
    _check_names(annotations, classes, split)
    indices = _sample(dataset, annotations, sample_size)
    sample = _restrict(annotations, {dataset.images[index].id for index in indices})
    boxes_per_image = Counter(a.image_id for a in sample.annotations if not a.is_crowd)
    max_detections = max([COMMON_MAX_DETECTIONS, *boxes_per_image.values()])
    replayed = {dataset.images[index].id: _as_detections(collate([dataset[0, index]])) for index in indices}
    written = _score(replayed, sample, classes, max_detections)
    ap = written.stats["AP"]
    shares = _inside_shares(sample)
    if ap is not None and ap < MIN_AP:
        _check_not_corners(sample, split, ap)
        clipped = _score(replayed, _clipped(sample), classes, max_detections)
        _check_score(clipped, split)
    return PreflightResult(
        ap=ap,
        num_images=len(indices),
        num_boxes=len(shares),
        num_boxes_outside=sum(share < MIN_AP for share in shares),
        images_over_limit=tuple(
            image.file_name for image in sample.images if boxes_per_image[image.id] > COMMON_MAX_DETECTIONS
        ),
    )


def _check_names(annotations: AnnotationSet, classes: Sequence[Category], split: str) -> None:
    expected = {category.id: category.name for category in classes}
    for category in annotations.categories:
        name = expected.get(category.id, category.name)
        if name != category.name:
            raise DataError(
                f"category id {category.id} is '{category.name}' here and '{name}' among the classes",
                where=f"split {split}",
                hint="give the same ids and names to the categories of all splits",
            )


def _sample(dataset: DetectionDataset, annotations: AnnotationSet, sample_size: int) -> list[int]:
    """Return the indices of images with boxes: `sample_size` evenly spread, and at most as many to show each class."""
    counts = Counter(annotation.image_id for annotation in annotations.annotations)
    indices = [index for index, image in enumerate(dataset.images) if counts[image.id]]
    stride = max(1, len(indices) // sample_size)
    index_of = {dataset.images[index].id: index for index in indices}
    first_of_class = {a.category_id: index_of[a.image_id] for a in reversed(annotations.annotations)}
    return sorted({*indices[::stride][:sample_size], *list(first_of_class.values())[:sample_size]})


def _restrict(annotations: AnnotationSet, image_ids: set[int]) -> AnnotationSet:
    return replace(
        annotations,
        images=tuple(image for image in annotations.images if image.id in image_ids),
        annotations=tuple(a for a in annotations.annotations if a.image_id in image_ids),
    )


def _as_detections(batch: Batch) -> Detections:
    """Turn the target of a batch of one image into detections without a fault."""
    boxes_xyxy_norm = cxcywh_to_xyxy(batch.targets[0].boxes_cxcywh_norm)[None]
    labels = batch.targets[0].labels
    boxes_xyxy_px = norm_to_px(boxes_xyxy_norm, batch.original_sizes_hw)[0]
    return Detections(boxes_xyxy_px, torch.ones(len(labels)), labels)


def _score(
    replayed: dict[int, Detections], annotations: AnnotationSet, classes: Sequence[Category], max_detections: int
) -> EvaluationResult:
    evaluator = CocoEvaluator(annotations, classes)
    for image_id, detections in replayed.items():
        evaluator.add(image_id, detections)
    return evaluator.compute(max_detections)


def _clip(annotation: Annotation, image: ImageRecord) -> Annotation:
    left, top, width, height = annotation.box_xywh_px
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    left, top = max(left, 0.0), max(top, 0.0)
    return structs.replace(annotation, box_xywh_px=(left, top, max(right - left, 0.0), max(bottom - top, 0.0)))


def _clipped(annotations: AnnotationSet) -> AnnotationSet:
    """Return the annotations as training sees them: clipped to their images, none without an area."""
    image_of = {image.id: image for image in annotations.images}
    clipped = (_clip(annotation, image_of[annotation.image_id]) for annotation in annotations.annotations)
    return replace(annotations, annotations=tuple(a for a in clipped if min(a.box_xywh_px[2:]) > 0))


def _inside_shares(annotations: AnnotationSet) -> list[float]:
    """Return the share of each box's area that lies inside its image; crowds are left out."""
    image_of = {image.id: image for image in annotations.images}
    shares = []
    for annotation in annotations.annotations:
        if annotation.is_crowd:
            continue
        inside = _clip(annotation, image_of[annotation.image_id]).box_xywh_px
        area = annotation.box_xywh_px[2] * annotation.box_xywh_px[3]
        shares.append(inside[2] * inside[3] / area if area > 0 else 0.0)
    return shares


def _check_not_corners(annotations: AnnotationSet, split: str, ap: float) -> None:
    image_of = {image.id: image for image in annotations.images}
    num_fitting = 0
    for annotation in annotations.annotations:
        image = image_of[annotation.image_id]
        left, top, right, bottom = annotation.box_xywh_px
        num_fitting += left < right <= image.width + 1 and top < bottom <= image.height + 1
    if num_fitting >= _FITS_AS_CORNERS * len(annotations.annotations):
        raise DataError(
            f"the annotations themselves score an AP of only {ap:.3f}: boxes reach beyond their images, and "
            f"{num_fitting} of {len(annotations.annotations)} would fit as two corners",
            where=f"split {split}",
            hint="COCO boxes are left, top, width, height in pixels; convert these from left, top, right, bottom",
        )


def _check_score(result: EvaluationResult, split: str) -> None:
    ap = result.stats["AP"]
    if ap is None or ap >= MIN_AP:
        return
    worst = min((row for row in result.per_class if row.ap is not None), key=lambda row: row.ap or 0.0)
    raise DataError(
        f"the annotations themselves score an AP of only {ap:.3f} (class '{worst.category.name}': {worst.ap or 0:.3f})",
        where=f"split {split}",
        hint="check that category ids and class names belong together, and the boxes' format and units",
    )

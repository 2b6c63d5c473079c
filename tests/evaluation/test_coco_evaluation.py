from __future__ import annotations

import contextlib
import io
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from core.annotations.records import Annotation, AnnotationSet, BoxXYWH, Category, ImageRecord
from core.evaluation.coco import STAT_NAMES, CocoEvaluator, EvaluationResult
from core.structures import Detections

# Not in the order of their ids, with gaps; labels follow the position here.
CLASSES = (Category(17, "cat"), Category(3, "car"), Category(10**9, "kite"))


def _no_detections() -> Detections:
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def _random_case(seed: int, *, num_images: int = 4, crowds: bool = True) -> tuple[AnnotationSet, dict[int, Detections]]:
    rng = random.Random(seed)
    images = tuple(ImageRecord(id_, f"{id_}.jpg", 400, 300) for id_ in rng.sample(range(1, 10**6), num_images))
    annotations: list[Annotation] = []
    found: dict[int, Detections] = {}
    for image in images:
        boxes: list[tuple[float, float, float, float]] = []
        labels: list[int] = []
        for _ in range(rng.randint(0, 6)):
            width, height = rng.uniform(4, 200), rng.uniform(4, 200)
            box: BoxXYWH = (rng.uniform(0, 300), rng.uniform(0, 200), width, height)
            label = rng.randrange(3)
            is_crowd = crowds and rng.random() < 0.2
            area = width * height * rng.choice((1.0, 0.6))
            category_id = CLASSES[label].id
            annotations.append(Annotation(len(annotations) + 1, image.id, category_id, box, area, is_crowd=is_crowd))
            for _ in range(rng.randint(0, 3)):
                boxes.append(tuple(value + rng.uniform(-12, 12) for value in box))  # type: ignore[arg-type]
                labels.append(label if rng.random() < 0.8 else rng.randrange(3))
        xywh = torch.tensor(boxes).reshape(-1, 4)
        xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:].clamp(min=1)], dim=1)
        scores = torch.tensor([round(rng.random(), 1) for _ in labels])  # with ties
        found[image.id] = Detections(xyxy, scores, torch.tensor(labels, dtype=torch.int64))
    return AnnotationSet(images, tuple(annotations), CLASSES), found


def _evaluate(annotations: AnnotationSet, found: dict[int, Detections]) -> EvaluationResult:
    evaluator = CocoEvaluator(annotations, CLASSES)
    for image_id, detections in found.items():
        evaluator.add(image_id, detections)
    return evaluator.compute()


def _raw_cocoeval(annotations: AnnotationSet, found: dict[int, Detections]) -> tuple[list[float], np.ndarray]:
    """Return what pycocotools says when it is used as its own demonstration does."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i.id, "width": i.width, "height": i.height} for i in annotations.images],
        "categories": [{"id": c.id, "name": c.name} for c in annotations.categories],
        "annotations": [
            {
                "id": a.id,
                "image_id": a.image_id,
                "category_id": a.category_id,
                "bbox": list(a.box_xywh_px),
                "area": a.area,
                "iscrowd": int(a.is_crowd),
            }
            for a in annotations.annotations
        ],
    }
    results = []
    for image_id, detections in found.items():
        for box, score, label in zip(
            detections.boxes_xyxy_px.double(), detections.scores, detections.labels, strict=True
        ):
            left, top, right, bottom = box.tolist()
            results.append(
                {
                    "image_id": image_id,
                    "category_id": CLASSES[int(label)].id,
                    "bbox": [left, top, right - left, bottom - top],
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats), evaluation.eval["precision"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_numbers_equal_those_of_pycocotools(seed: int) -> None:
    annotations, found = _random_case(seed)
    if not sum(map(len, found.values())):
        return  # pycocotools itself fails
    result = _evaluate(annotations, found)
    stats, precision = _raw_cocoeval(annotations, found)
    assert [-1 if result.stats[name] is None else result.stats[name] for name in STAT_NAMES] == stats
    ids = sorted(category.id for category in CLASSES)
    assert [row.category.id for row in result.per_class] == ids
    for row, values in zip(result.per_class, np.moveaxis(precision[:, :, :, 0, 2], 2, 0), strict=True):
        assert row.ap == (None if (values == -1).all() else values.mean())
        assert row.ap50 == (None if (values == -1).all() else values[0].mean())
        real = [a for a in annotations.annotations if a.category_id == row.category.id and not a.is_crowd]
        assert row.num_boxes == len(real)
    assert result.num_detections == sum(map(len, found.values()))
    assert result.num_images == len(annotations.images)


def test_the_order_of_images_does_not_matter() -> None:
    annotations, found = _random_case(1, num_images=8)
    assert _evaluate(annotations, found) == _evaluate(annotations, dict(reversed(found.items())))


def test_f60_no_detections_score_zero() -> None:
    annotations, found = _random_case(3)
    assert any(not a.is_crowd for a in annotations.annotations)
    result = _evaluate(annotations, dict.fromkeys(found, _no_detections()))
    assert result.stats["AP"] == 0.0
    assert result.stats["AR100"] == 0.0
    assert result.num_detections == 0


@pytest.mark.parametrize("only_crowds", [True, False])
def test_f61_without_boxes_to_find_there_is_no_number(only_crowds: bool) -> None:
    annotations, found = _random_case(3)
    crowds = tuple(structs.replace(a, is_crowd=True) for a in annotations.annotations) if only_crowds else ()
    result = _evaluate(replace(annotations, annotations=crowds), found)
    assert result.stats == dict.fromkeys(STAT_NAMES)
    assert all(row.ap is None and row.ap50 is None and row.num_boxes == 0 for row in result.per_class)


def test_no_images_at_all() -> None:
    assert _evaluate(AnnotationSet((), (), CLASSES), {}).stats["AP"] is None


def test_crowds_are_neither_found_nor_missed() -> None:
    annotations, found = _random_case(5, crowds=False)
    plain = _evaluate(annotations, found)
    assert plain.stats["AP"]
    image = annotations.images[0]
    crowd = Annotation(10**6, image.id, CLASSES[0].id, (0.0, 0.0, 400.0, 300.0), 120000.0, is_crowd=True)
    with_crowd = replace(annotations, annotations=(*annotations.annotations, crowd))
    inside_crowd = Detections(torch.tensor([[5.0, 5, 390, 290]]), torch.ones(1), torch.tensor([0]))
    merged = Detections(
        torch.cat([found[image.id].boxes_xyxy_px, inside_crowd.boxes_xyxy_px]),
        torch.cat([found[image.id].scores, inside_crowd.scores]),
        torch.cat([found[image.id].labels, inside_crowd.labels]),
    )
    more = {**found, image.id: merged}
    car = 0 if plain.per_class[0].category.name == "car" else 1
    assert _evaluate(with_crowd, more).per_class[car] == plain.per_class[car]
    cat_with_crowd, cat_without = (
        next(row for row in _evaluate(data, more).per_class if row.category.name == "cat")
        for data in (with_crowd, annotations)
    )
    assert cat_with_crowd.ap is None or cat_without.ap is None or cat_with_crowd.ap >= cat_without.ap


def test_an_annotation_of_id_0_counts() -> None:
    """In pycocotools an annotation of id 0 is never matched."""
    image = ImageRecord(1, "a.jpg", 100, 100)
    annotation = Annotation(0, 1, 3, (10.0, 10.0, 50.0, 50.0), 2500.0, is_crowd=False)
    annotations = AnnotationSet((image,), (annotation,), CLASSES)
    result = _evaluate(
        annotations, {1: Detections(torch.tensor([[10.0, 10, 60, 60]]), torch.ones(1), torch.tensor([1]))}
    )
    assert result.stats["AP"] == pytest.approx(1)
    assert {row.category.name: row.ap is None for row in result.per_class} == {"car": False, "cat": True, "kite": True}


def test_more_than_100_detections_count_when_asked() -> None:
    boxes = [(float(x * 10), float(y * 10), 8.0, 8.0) for x in range(15) for y in range(10)]
    image = ImageRecord(1, "a.jpg", 200, 200)
    annotations = AnnotationSet(
        (image,), tuple(Annotation(row, 1, 3, box, 64.0, is_crowd=False) for row, box in enumerate(boxes)), CLASSES
    )
    xywh = torch.tensor(boxes)
    perfect = Detections(
        torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1), torch.ones(150), torch.ones(150, dtype=torch.int64)
    )
    evaluator = CocoEvaluator(annotations, CLASSES)
    evaluator.add(1, perfect)
    limited, whole = evaluator.compute(), evaluator.compute(max_detections=150)
    assert limited.stats["AR100"] == pytest.approx(100 / 150)
    assert whole.stats["AP"] == pytest.approx(1)


def test_images_must_come_exactly_once() -> None:
    annotations, _ = _random_case(9)
    evaluator = CocoEvaluator(annotations, CLASSES)
    with pytest.raises(ValueError, match="not evaluated"):
        evaluator.compute()
    image_id = annotations.images[0].id
    evaluator.add(image_id, _no_detections())
    with pytest.raises(ValueError, match="twice"):
        evaluator.add(image_id, _no_detections())
    with pytest.raises(ValueError, match="not in the annotations"):
        evaluator.add(0, _no_detections())


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    _evaluate(*_random_case(2))
    assert capsys.readouterr() == ("", "")

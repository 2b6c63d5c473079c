"""hotcoco against pycocotools: equal to the last bit, or hotcoco must not be used."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.errors import MachineError
from core.evaluation.backends import (
    DetectionTable,
    GroundTruth,
    HotcocoBackend,
    PrecisionRecall,
    PycocotoolsBackend,
    choose_backend,
)
from core.evaluation.coco import CocoEvaluator, EvaluationResult
from core.structures import Detections

hotcoco = pytest.importorskip("hotcoco")

KINDS = (
    "plain", "whole pixels", "coarse grid", "exact", "duplicates", "tied scores", "equal scores", "empty boxes",
    "negative sizes", "large coordinates", "tiny boxes", "areas at the limits", "only crowds", "one class", "crowded",
    "at the thresholds", "infinite scores", "no detections", "no ground truth", "no images",
)  # fmt: skip


def _scene(kind: str, rng: np.random.Generator) -> tuple[GroundTruth, DetectionTable]:
    """Make some images, boxes in them, and detections near these; rows of both in no order."""
    num_images = 0 if kind == "no images" else int(rng.integers(1, 7))
    num_classes = int(rng.integers(1, 5))
    num_boxes = 0 if kind in ("no images", "no ground truth") else int(rng.integers(0, 8 * num_images))
    boxes = np.concatenate([rng.uniform(-10, 300, (num_boxes, 2)), np.exp(rng.uniform(0, 5.5, (num_boxes, 2)))], axis=1)
    boxes = _altered(kind, boxes, rng)
    areas = boxes[:, 2] * boxes[:, 3] * rng.choice([1, 0.6], num_boxes)
    if kind == "areas at the limits":
        areas = rng.choice([0, 1024, 1024 + 1e-9, 9216, 9216 - 1e-9, 1e10, 1e10 + 1], num_boxes)
    truth = GroundTruth(
        image_ids=tuple(range(num_images)),
        categories=tuple(Category(row, str(row)) for row in range(num_classes)),
        image_rows=rng.integers(0, max(num_images, 1), num_boxes),
        class_rows=np.zeros(num_boxes, np.int64) if kind == "one class" else rng.integers(0, num_classes, num_boxes),
        boxes_xywh_px=boxes,
        areas=areas,
        is_crowd=rng.random(num_boxes) < (1 if kind == "only crowds" else 0.2),
    )
    return truth, _detections_near(truth, kind, rng)


def _detections_near(truth: GroundTruth, kind: str, rng: np.random.Generator) -> DetectionTable:
    num_images, num_boxes = len(truth.image_ids), len(truth.areas)
    per_box = 40 if kind == "crowded" else 4
    num_near = int(rng.integers(0, per_box * num_boxes + 1))
    num_else = int(rng.integers(0, 10 * num_images + 1))
    if kind == "no detections":
        num_near = num_else = 0
    near = rng.integers(0, max(num_boxes, 1), num_near)
    sizes = np.tile(truth.boxes_xywh_px[near, 2:], 2)
    moved = truth.boxes_xywh_px[near] + (kind != "exact") * rng.normal(0, 0.15, (num_near, 4)) * sizes
    moved[:, 2:] = np.abs(moved[:, 2:])
    if kind == "at the thresholds":
        # A box moved by this much of its width has this IoU with what it was.
        iou = rng.choice(np.linspace(0.5, 0.95, 10), num_near)
        moved = truth.boxes_xywh_px[near]
        moved[:, 0] += moved[:, 2] * (1 - iou) / (1 + iou)
    anywhere = np.concatenate([rng.uniform(0, 300, (num_else, 2)), np.exp(rng.uniform(0, 5, (num_else, 2)))], axis=1)
    boxes = _altered(kind, np.concatenate([moved, anywhere]), rng)
    rows = rng.permutation(len(boxes))
    if kind == "duplicates":
        rows = rng.choice(rows, len(rows))
    image_rows = np.concatenate([truth.image_rows[near], rng.integers(0, max(num_images, 1), num_else)])
    class_rows = np.concatenate([truth.class_rows[near], rng.integers(0, len(truth.categories), num_else)])
    scores = rng.random(len(boxes)).astype(np.float32).astype(np.float64)
    if kind in ("tied scores", "whole pixels", "coarse grid", "exact", "duplicates", "crowded"):
        scores = scores.round(1)
    if kind == "equal scores":
        scores[:] = 0.5
    if kind == "infinite scores":
        scores[rng.random(len(scores)) < 0.2] = np.inf
    return DetectionTable(image_rows[rows], class_rows[rows], boxes[rows], scores[rows])


def _altered(kind: str, boxes_xywh_px: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    boxes = boxes_xywh_px.copy()
    some = rng.random(len(boxes)) < 0.3
    side = int(rng.integers(2, 4))
    if kind == "whole pixels":
        return boxes.round()
    if kind == "coarse grid":
        return (boxes / 16).round() * 16
    if kind == "empty boxes":
        boxes[some, side] = 0
    elif kind == "negative sizes":
        boxes[some, side] *= -1
    elif kind == "large coordinates":
        boxes *= 1e8
    elif kind == "tiny boxes":
        boxes[:, 2:] *= 1e-200
    return boxes


def _both(
    truth: GroundTruth, found: DetectionTable, max_detections: int = 100
) -> tuple[PrecisionRecall, PrecisionRecall]:
    reference, fast = PycocotoolsBackend(truth), HotcocoBackend(truth)
    return reference.score(found, max_detections), fast.score(found, max_detections)


def _require_equal(reference: PrecisionRecall, fast: PrecisionRecall) -> None:
    np.testing.assert_array_equal(fast.precision, reference.precision, strict=True)
    np.testing.assert_array_equal(fast.recall, reference.recall, strict=True)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**9), max_detections=st.sampled_from([100, 100, 10, 11, 30, 500]))
def test_arrays_are_equal_to_the_last_bit(kind: str, seed: int, max_detections: int) -> None:
    truth, found = _scene(kind, np.random.default_rng(seed))
    _require_equal(*_both(truth, found, max_detections))


def test_the_scenes_find_something_and_miss_something() -> None:
    """Equal numbers mean little if all of them are 0 or -1."""
    for kind in ("plain", "whole pixels", "coarse grid", "duplicates", "tied scores", "empty boxes", "crowded"):
        means = []
        for seed in range(6):
            reference, _ = _both(*_scene(kind, np.random.default_rng(seed)))
            defined = reference.recall[reference.recall > -1]
            means += [defined.mean()] if defined.size else []
        assert 0.02 < np.mean(means) < 0.98, kind


@pytest.mark.parametrize("what", ["boxes", "scores"])
def test_what_is_not_a_number_scores_as_pycocotools_has_it(what: str) -> None:
    truth, found = _scene("plain", np.random.default_rng(1))
    values = found.boxes_xywh_px if what == "boxes" else found.scores
    values[::3] = np.nan
    _require_equal(*_both(truth, found))


def _blood_cells(num_images: int = 15) -> tuple[AnnotationSet, dict[int, Detections]]:
    """Make crowds of touching cells of one class and few of two others, and 100 sorted detections in every image."""
    rng = random.Random(0)
    classes = (Category(1, "platelet"), Category(2, "red"), Category(3, "white"))
    images = tuple(ImageRecord(rng.randrange(10**6) * 100 + row, f"{row}.jpg", 640, 480) for row in range(num_images))
    annotations: list[Annotation] = []
    found: dict[int, Detections] = {}
    for image in images:
        rows: list[tuple[float, float, float, float, float, int]] = []
        for label, mean_size in [(0, 40), (2, 190), *[(1, 105)] * rng.randrange(4, 20)]:
            left, top = float(rng.randrange(500)), float(rng.randrange(340))
            width, height = (float(round(mean_size * rng.uniform(0.8, 1.2))) for _ in range(2))
            box = (left, top, width, height)
            annotations.append(Annotation(len(annotations), image.id, label + 1, box, width * height, is_crowd=False))
            for _ in range(4):
                dx, dy, dw, dh = (rng.gauss(0, 0.1) * mean_size for _ in range(4))
                score = min(max(rng.gauss(0.7, 0.2) - abs(dx) / mean_size, 0.0), 1.0)
                rows.append((left + dx, top + dy, left + width + dw, top + height + dh, score, label))
        while len(rows) < 100:
            left, top, size = rng.uniform(0, 500), rng.uniform(0, 400), rng.uniform(20, 200)
            rows.append((left, top, left + size, top + size, rng.random() * 0.3, rng.randrange(3)))
        table = torch.tensor(sorted(rows, key=lambda row: -row[4])[:100])
        found[image.id] = Detections(table[:, :4], table[:, 4], table[:, 5].long())
    return AnnotationSet(images, tuple(annotations), classes), found


def _evaluate(evaluator: CocoEvaluator, found: dict[int, Detections]) -> EvaluationResult:
    evaluator.clear()
    for image_id, detections in found.items():
        evaluator.add(image_id, detections)
    return evaluator.compute()


def test_one_evaluator_serves_all_epochs() -> None:
    annotations, found = _blood_cells()
    worse = {
        image_id: Detections(d.boxes_xyxy_px + 9, d.scores.round(decimals=1), d.labels) for image_id, d in found.items()
    }
    results = []
    for name in ("pycocotools", "hotcoco"):
        evaluator = CocoEvaluator(annotations, annotations.categories, backend=name)
        first, second, third = (_evaluate(evaluator, epoch) for epoch in (found, worse, found))
        assert second == _evaluate(CocoEvaluator(annotations, annotations.categories, backend=name), worse)
        assert first == third != second
        results.append((first, second))
    assert results[0] == results[1]
    assert 0.1 < (results[0][1].stats["AP"] or 0) < (results[0][0].stats["AP"] or 0) < 0.9


def test_classes_that_the_annotations_do_not_have_are_not_scored() -> None:
    annotations, found = _blood_cells(5)
    more = (Category(9, "other"), *annotations.categories)
    with_more = {
        image_id: Detections(
            d.boxes_xyxy_px.repeat(2, 1), d.scores.repeat(2), torch.cat([torch.zeros_like(d.labels), d.labels + 1])
        )
        for image_id, d in found.items()
    }
    for name in ("pycocotools", "hotcoco"):
        plain = _evaluate(CocoEvaluator(annotations, annotations.categories, backend=name), found)
        result = _evaluate(CocoEvaluator(annotations, more, backend=name), with_more)
        assert (result.stats, result.per_class) == (plain.stats, plain.per_class)
        assert result.num_detections == 2 * plain.num_detections


def test_auto_is_hotcoco_where_it_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("auto") is choose_backend("hotcoco") is HotcocoBackend
    assert choose_backend("pycocotools") is PycocotoolsBackend

    def is_absent() -> None:
        monkeypatch.setitem(sys.modules, "hotcoco", None)

    def is_untested(version: str) -> Callable[[], None]:
        return lambda: monkeypatch.setattr(hotcoco, "__version__", version)

    for change, reason in [
        (is_untested("2.0.0"), "hotcoco is 2.0.0"),
        (is_untested("1.2.1"), "hotcoco is 1.2.1"),
        (is_absent, "not installed"),
    ]:
        change()
        assert choose_backend("auto") is PycocotoolsBackend
        with pytest.raises(MachineError, match=reason) as caught:
            choose_backend("hotcoco")
        assert "pip install 'dedetr[fast-eval]'" in str(caught.value.hint)


def test_hotcoco_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    annotations, found = _blood_cells(5)
    _evaluate(CocoEvaluator(annotations, annotations.categories, backend="hotcoco"), found)
    assert capfd.readouterr() == ("", "")

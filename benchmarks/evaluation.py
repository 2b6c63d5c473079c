"""hotcoco against pycocotools, interleaved in one process, on detections as `dedetr eval` collects them.

    python benchmarks/evaluation.py [--images 5000] [--detections 100] [--classes 80] [--rounds 3]

The time of an epoch is from the detections of every image, as tensors, to AP; what is kept from one epoch to the next
is there already, and the seconds that it took, imports and an evaluation of nothing included, are in a column of their
own. All numbers must be equal to the last bit.
hotcoco takes as many threads as there are cores, unless RAYON_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import astuple
from statistics import median

import numpy as np
import torch

from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.evaluation.coco import CocoEvaluator, EvaluationResult
from core.structures import Detections
from runs import table

WIDTH, HEIGHT = 640, 480
BOXES_PER_IMAGE = 7.3  # as COCO has
DETECTIONS_PER_BOX = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    annotations, found = make_scene(arguments.images, arguments.detections, arguments.classes)
    nothing = dict.fromkeys(found, Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)))
    evaluators, seconds_once = {}, {}
    for name in ("pycocotools", "hotcoco"):
        began = time.perf_counter()
        evaluators[name] = CocoEvaluator(annotations, annotations.categories, backend=name)
        evaluate(evaluators[name], nothing)  # makes what is kept
        seconds_once[name] = time.perf_counter() - began
    seconds: dict[str, list[float]] = {name: [] for name in evaluators}
    for _ in range(arguments.rounds):
        results = []
        for name, evaluator in evaluators.items():
            result, taken = evaluate(evaluator, found)
            results.append(result)
            seconds[name].append(taken)
        if astuple(results[0]) != astuple(results[1]):
            raise SystemExit(f"the numbers differ: {results}")
    ratios = [slow / fast for slow, fast in zip(seconds["pycocotools"], seconds["hotcoco"], strict=True)]
    scene = f"{arguments.images} x {arguments.detections}, {arguments.classes} classes"
    rows = [
        [scene, name, f"{median(taken) / median(seconds['hotcoco']):.1f}", f"{median(taken):.2f}",
         f"{seconds_once[name]:.2f}", f"{results[0].stats['AP']:.4f}"]
        for name, taken in seconds.items()
    ]  # fmt: skip
    print(table(["images x detections", "evaluator", "times", "s/epoch", "s once", "AP"], rows))
    print(f"\npycocotools / hotcoco: median {median(ratios):.1f}, from {min(ratios):.1f} to {max(ratios):.1f}")


def evaluate(evaluator: CocoEvaluator, found: dict[int, Detections]) -> tuple[EvaluationResult, float]:
    """Return the numbers of an epoch and the seconds that they took."""
    evaluator.clear()
    began = time.perf_counter()
    for image_id, detections in found.items():
        evaluator.add(image_id, detections)
    result = evaluator.compute()
    return result, time.perf_counter() - began


def make_scene(num_images: int, num_detections: int, num_classes: int) -> tuple[AnnotationSet, dict[int, Detections]]:
    """Make boxes of all sizes, some of them crowds, and the detections of a middling detector, by falling score."""
    rng = np.random.default_rng(0)
    categories = tuple(Category(row + 1, f"class {row + 1}") for row in range(num_classes))
    frequency = 1 / np.arange(1, num_classes + 1)
    frequency /= frequency.sum()
    images = tuple(ImageRecord(row + 1, f"{row + 1}.jpg", WIDTH, HEIGHT) for row in range(num_images))
    annotations: list[Annotation] = []
    found = {}
    for image in images:
        labels = rng.choice(rng.choice(num_classes, rng.integers(1, 5), p=frequency), rng.poisson(BOXES_PER_IMAGE))
        boxes_xywh = _boxes(len(labels), rng).round(2)
        for box, label in zip(boxes_xywh.tolist(), labels.tolist(), strict=True):
            area, is_crowd = box[2] * box[3] * rng.uniform(0.4, 1), bool(rng.random() < 0.01)
            annotations.append(Annotation(len(annotations) + 1, image.id, label + 1, tuple(box), area, is_crowd))
        found[image.id] = _detections(boxes_xywh, labels, num_detections, frequency, rng)
    return AnnotationSet(images, tuple(annotations), categories), found


def _boxes(number: int, rng: np.random.Generator) -> np.ndarray:
    sizes = np.exp(rng.uniform(np.log(8), np.log(400), (number, 2)))
    corners = rng.uniform(0, 1, (number, 2)) * (np.array([WIDTH, HEIGHT]) - sizes)
    return np.concatenate([corners, sizes], axis=1)


def _detections(
    boxes_xywh: np.ndarray, labels: np.ndarray, number: int, frequency: np.ndarray, rng: np.random.Generator
) -> Detections:
    """Find most boxes several times, more or less well, and much else with lower scores."""
    num_near = min(len(labels) * DETECTIONS_PER_BOX, number * 4 // 5)
    near = rng.integers(0, len(labels), num_near) if num_near else np.zeros(0, dtype=np.int64)
    shift = rng.normal(0, 0.12, (num_near, 4))
    moved = boxes_xywh[near] + shift * np.tile(boxes_xywh[near, 2:], 2)
    moved[:, 2:] = moved[:, 2:].clip(min=1)
    seen = np.where(rng.random(num_near) < 0.8, labels[near], rng.choice(len(frequency), num_near, p=frequency))
    scores = (1 - 3 * np.abs(shift).mean(axis=1) + rng.normal(0, 0.15, num_near)).clip(0.01, 0.99)
    num_else = number - num_near
    boxes_xywh = np.concatenate([moved, _boxes(num_else, rng)])
    seen = np.concatenate([seen, rng.choice(len(frequency), num_else, p=frequency)])
    scores = np.concatenate([scores, rng.beta(1, 8, num_else)])
    order = np.argsort(-scores)
    boxes_xyxy = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)[order]
    return Detections(
        torch.from_numpy(boxes_xyxy).float(), torch.from_numpy(scores[order]).float(), torch.from_numpy(seen[order])
    )


if __name__ == "__main__":
    main()

"""From image files to detections, and from detections to files that other programs read."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from core.annotations.images import SUFFIXES, open_image
from core.annotations.records import Category
from core.datasets.batches import collate
from core.datasets.dataset import Sample, Transform
from core.datasets.transforms import clip_boxes
from core.errors import DataError
from core.files import write_atomic
from core.structures import Detections, ModelOutput, Target


@dataclass(frozen=True)
class ImagePrediction:
    """What was found in one image file, or why it could not be read.

    Attributes:
        path: the file, as it was named.
        size_wh: width and height in pixels; None where the file could not be read.
        detections: by falling score, clipped to the image, on the CPU; None where the file could not be read.
        error: what is wrong with the file; None where it was read.
    """

    path: Path
    size_wh: tuple[int, int] | None
    detections: Detections | None
    error: DataError | None = None


def collect_images(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the image files that the inputs name, each once, in the inputs' order.

    An input is a file of any name; a folder, which stands for the image files directly in it, by name; or a
    glob pattern (`**` for folders below), likewise sorted.

    Raises:
        DataError: an input names no image.
    """
    collected: dict[Path, Path] = {}
    for item in inputs:
        found = _images_of(Path(item))
        if not found:
            raise DataError(
                "no image found" if Path(item).is_dir() or glob.has_magic(str(item)) else "there is no such file",
                where=str(item),
                hint="name image files, a folder that holds them, or a quoted pattern such as 'photos/**/*.jpg'",
            )
        for path in found:
            collected.setdefault(path.resolve(), path)
    return list(collected.values())


def _images_of(path: Path) -> list[Path]:
    if path.is_dir():
        try:
            return sorted(entry for entry in path.iterdir() if _is_image(entry))
        except OSError as error:
            raise DataError(f"the folder cannot be read: {error.strerror}", where=str(path)) from error
    if path.exists():
        return [path]
    matches = (Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns too)
    return sorted(match for match in matches if _is_image(match))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def predict_images(
    model: nn.Module,
    postprocess: Callable[[ModelOutput, Tensor], list[Detections]],
    transform: Transform,
    paths: Sequence[Path],
    device: torch.device,
    *,
    batch_size: int,
    threshold: float,
) -> Iterator[ImagePrediction]:
    """Detect objects in image files, batch by batch.

    Files that cannot be read do not stop the rest: their prediction carries the error. Detections outside the
    image are left out.

    Args:
        model: maps an ImageBatch to a ModelOutput; set to evaluation mode.
        postprocess: turns that into detections.
        transform: that of evaluation.
        paths: image files.
        device: where the model is.
        batch_size: images at a time.
        threshold: the least score that is kept.

    Yields:
        One prediction for each path, in order.
    """
    model.eval()
    for first in range(0, len(paths), batch_size):
        chunk = paths[first : first + batch_size]
        read = [_read(path, transform, index) for index, path in enumerate(chunk)]
        samples = [sample for sample in read if isinstance(sample, Sample)]
        found: dict[int, Detections] = {}
        if samples:
            batch = collate(samples).to(device)
            with torch.inference_mode():
                detected = postprocess(model(batch.images), batch.original_sizes_hw)
            found = dict(zip(batch.image_ids, detected, strict=True))
        for index, (path, sample) in enumerate(zip(chunk, read, strict=True)):
            if isinstance(sample, DataError):
                yield ImagePrediction(path, None, None, sample)
                continue
            height, width = sample.original_size_hw
            yield ImagePrediction(path, (width, height), _presentable(found[index], height, width, threshold))


def _read(path: Path, transform: Transform, index: int) -> Sample | DataError:
    try:
        image = open_image(path)
    except DataError as error:
        return error
    no_boxes, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    transformed = transform(functional.pil_to_tensor(image), no_boxes, no_labels, None)
    target = Target(transformed.boxes_cxcywh_norm, transformed.labels)
    return Sample(transformed.pixels, target, index, (image.height, image.width))


def _presentable(detections: Detections, height: int, width: int, threshold: float) -> Detections:
    """Return what a person wants to see: above the threshold, inside the image, the surest first."""
    on_cpu = Detections(detections.boxes_xyxy_px.cpu(), detections.scores.cpu(), detections.labels.cpu())
    sure = on_cpu.select(on_cpu.scores >= threshold)
    boxes, kept = clip_boxes(sure.boxes_xyxy_px, torch.tensor([height, width]))
    inside = Detections(boxes, sure.scores[kept], sure.labels[kept])
    return inside.select(inside.scores.argsort(descending=True, stable=True))


def write_predictions_json(path: Path, predictions: Sequence[ImagePrediction], classes: Sequence[Category]) -> None:
    """Write a COCO results list, with `file_name` and `category_name` added to every entry.

    `image_id` is the number that a file is named after (`000000397133.jpg`) where all files are named so and
    no two alike; otherwise it counts the files from 1.

    Raises:
        MachineError: the file cannot be written.
    """
    image_ids = _image_ids([prediction.path for prediction in predictions])
    results = [
        {"image_id": image_id, "file_name": _text_of(prediction.path), **entry}
        for image_id, prediction in zip(image_ids, predictions, strict=True)
        for entry in _entries(prediction, classes)
    ]
    lines = ",\n".join(json.dumps(result, ensure_ascii=False) for result in results)
    write_atomic(path, f"[\n{lines}\n]\n" if results else "[]\n")


def write_predictions_csv(path: Path, predictions: Sequence[ImagePrediction], classes: Sequence[Category]) -> None:
    """Write a table with one row for each detection; boxes as left, top, width, height in pixels.

    A file or class name that a spreadsheet would take for a formula gets an apostrophe in front.

    Raises:
        MachineError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "category_id", "category_name", "score", "left", "top", "width", "height"])
    for prediction in predictions:
        file_name = _not_a_formula(_text_of(prediction.path))
        for entry in _entries(prediction, classes):
            name = _not_a_formula(entry["category_name"])
            writer.writerow([file_name, entry["category_id"], name, entry["score"], *entry["bbox"]])
    write_atomic(path, text.getvalue())


def _entries(prediction: ImagePrediction, classes: Sequence[Category]) -> list[dict[str, Any]]:
    """Return an image's detections as COCO results without the image; none for a file that could not be read."""
    if prediction.detections is None:
        return []
    found = prediction.detections
    rows = zip(found.boxes_xyxy_px.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [
        {
            "category_id": classes[label].id,
            "category_name": classes[label].name,
            # A thousandth of a pixel: float32 holds no more for an image of thousands.
            "bbox": [round(value, 3) for value in (left, top, right - left, bottom - top)],
            "score": round(score, 6),
        }
        for (left, top, right, bottom), score, label in rows
    ]


def _image_ids(paths: Sequence[Path]) -> list[int]:
    stems = [path.stem for path in paths]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(paths) + 1))


def _text_of(path: Path) -> str:
    """Return a path as text that can be written; bytes that are not UTF-8 become question marks."""
    return os.fsencode(path).decode("utf-8", "replace").replace(os.sep, "/")


def _not_a_formula(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text

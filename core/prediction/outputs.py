"""Detections as files that other programs read: COCO results, a table, YOLO's label files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.annotations.records import Category
from core.files import unique_names, write_atomic
from core.prediction.detect import ImagePrediction

CLASS_LIST = "classes"


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


def label_paths(folder: Path, images: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Return where YOLO's list of classes goes, and the label file of each image: its own name, numbered if not unique.

    Pictures and crops are numbered alike, unless an image is called as the list of classes is.
    """
    class_list, *names = unique_names([CLASS_LIST, *(image.stem for image in images)])
    return folder / f"{class_list}.txt", [folder / f"{name}.txt" for name in names]


def write_yolo_labels(path: Path, prediction: ImagePrediction) -> None:
    """Write a line for each detection: label, centre x, centre y, width, height as shares of the image, and score.

    The label is the position in the detector's classes. An image without detections gets an empty file.

    Raises:
        ValueError: the image could not be read, so there is nothing to say about it.
        MachineError: the file cannot be written.
    """
    if prediction.detections is None or prediction.size_wh is None:
        raise ValueError(f"{prediction.path} was not read")
    width, height = prediction.size_wh
    found = prediction.detections
    rows = zip(found.labels.tolist(), found.boxes_xyxy_px.tolist(), found.scores.tolist(), strict=True)
    lines = (
        f"{label} {(left + right) / 2 / width:.6f} {(top + bottom) / 2 / height:.6f} "
        f"{(right - left) / width:.6f} {(bottom - top) / height:.6f} {score:.6f}\n"
        for label, (left, top, right, bottom), score in rows
    )
    write_atomic(path, "".join(lines))


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

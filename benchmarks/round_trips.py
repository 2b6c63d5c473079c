"""Data sets written in other formats by `dedetr prepare-data --export`, and read again: what has changed?

    python benchmarks/round_trips.py SOURCE [SOURCE ...]

Each source (a folder in any format) is prepared, checked, exported to each format, and prepared again from that. Images
are matched by their pixels, boxes of an image by their order along the edges. Prints how far edges moved at most, in
pixels, and how many images and boxes did not come back.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.annotations.prepared import open_dataset, read_split
from core.files import join_within
from runs import table

FORMATS = ("yolo", "voc", "coco")
Box = tuple[str, float, float, float, float]
"""Class name, then left, top, right, bottom in pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    sources = parser.parse_args().sources
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, source in enumerate(sources):
            work = Path(folder) / str(number)
            run("prepare-data", source, "--out", work / "data")
            report = json.loads(run("prepare-data", work / "data", "--check", "--json"))["check"]
            before = content(work / "data")
            for name in FORMATS:
                run("prepare-data", work / "data", "--export", name, "--out", work / name)
                run("prepare-data", work / name, "--out", work / f"{name}-again")
                rows.append(
                    [source.name, report["num_errors"], name, *difference(before, content(work / f"{name}-again"))]
                )
    headers = [
        "data set",
        "faults",
        "format",
        "images",
        "lost",
        "boxes",
        "lost",
        "classes changed",
        "edges moved by, px",
    ]
    print(table(headers, rows))


def run(*arguments: object) -> str:
    """Run the real command, and return what it says on stdout."""
    command = [sys.executable, "-m", "dedetr_cli", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def content(root: Path) -> dict[tuple[str, str], list[Box]]:
    """Return the boxes of every image, without crowds, by its split and the hash of its pixels."""
    dataset = open_dataset(root)
    found: dict[tuple[str, str], list[Box]] = {}
    for name, split in dataset.splits.items():
        annotations, _ = read_split(dataset, name)
        class_of = {category.id: category.name for category in annotations.categories}
        by_image = annotations.by_image()
        for image in annotations.images:
            with Image.open(join_within(split.image_root, image.file_name)) as picture:
                pixels = hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()
            boxes = found.setdefault((name, pixels), [])
            for annotation in by_image[image.id]:
                left, top, width, height = annotation.box_xywh_px
                right, bottom = min(left + width, image.width), min(top + height, image.height)
                if not annotation.is_crowd:
                    boxes.append((class_of[annotation.category_id], max(left, 0), max(top, 0), right, bottom))
    return found


def difference(before: dict[tuple[str, str], list[Box]], after: dict[tuple[str, str], list[Box]]) -> list[Any]:
    """Return what the table says of two contents; boxes are compared as clipped to their images."""
    num_lost_boxes, num_changed, moved = 0, 0, 0.0
    for key, boxes in before.items():
        others = sorted(after.get(key, []), key=rounded)
        num_lost_boxes += abs(len(boxes) - len(others))
        for box, other in zip(sorted(boxes, key=rounded), others, strict=False):
            num_changed += box[0] != other[0]
            moved = max(moved, float(np.abs(np.subtract(box[1:], other[1:])).max()))
    num_boxes = sum(map(len, before.values()))
    lost = len(before.keys() ^ after.keys())
    return [len(before), lost, num_boxes, num_lost_boxes, num_changed, f"{moved:.2g}"]


def rounded(box: Box) -> tuple[object, ...]:
    """Return what boxes are sorted by, the same before and after."""
    return box[0], *(round(edge, 1) for edge in box[1:])


if __name__ == "__main__":
    main()

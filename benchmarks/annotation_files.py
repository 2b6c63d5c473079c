"""Reading and thinning a COCO-sized annotation file: dedetr against the usual way, each in a process of its own.

    python benchmarks/annotation_files.py [--images 118287] [--annotations 860000] [--rounds 3] [--folder DIR]

The file is made for it (seeded, about 450 MB: polygons, run lengths of crowds, the keys of COCO's own files) and
deleted at the end. No image is opened.

- Loading: `read_split`, which checks every annotation, against pycocotools' `COCO(file)`: `json.load` and an index.
- A 5 % subset: the whole command `dedetr subsample`, which checks as much and hashes both files, against `json.load`,
  `copy.deepcopy`, and `json.dump` of the chosen images and their annotations.

Seconds and peak memory are those of a whole process; ratios are ours / usual of one round, and all are medians.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from runs import table

WIDTH, HEIGHT = 640, 480
NUM_CATEGORIES = 80
NUM_SHAPES = 20_000
"""So many outlines are drawn; annotations share them, which no reader notices, and the file is made in seconds."""
RATE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made for the while; default: a temporary one")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "DATA"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        MEASURED[arguments.measure[0]](Path(arguments.measure[1]))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        data = Path(folder) / "coco"
        file = make_layout(data, arguments.images, arguments.annotations)
        megabytes = file.stat().st_size / 1e6
        print(f"{megabytes:.0f} MB, {arguments.images} images, {arguments.annotations} annotations", file=sys.stderr)
        rows = [compare(*pair, data, arguments.rounds) for pair in (("load", "load-usual"), ("thin", "thin-usual"))]
    headers = ["", "s", "usual s", "ratio", "peak MiB", "usual MiB", "ratio"]
    print(f"{megabytes:.0f} MB, medians of {arguments.rounds} rounds\n\n{table(headers, rows)}")


def compare(ours: str, usual: str, data: Path, num_rounds: int) -> list[str]:
    rounds = [(measure(ours, data), measure(usual, data)) for _ in range(num_rounds)]
    row = [{"load": "load and check", "thin": f"subset of {RATE:.0%}"}[ours]]
    for quantity, digits in ((0, 1), (1, 0)):
        pairs = [(mine[quantity], theirs[quantity]) for mine, theirs in rounds]
        row += [f"{median(side):.{digits}f}" for side in zip(*pairs, strict=True)]
        row.append(f"{median(mine / theirs for mine, theirs in pairs):.2f}")
    return row


def measure(what: str, data: Path) -> tuple[float, float]:
    """Return the seconds and the peak memory in MiB of a process of its own."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--measure", what, str(data)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{what}: exit code {process.returncode}")
    seconds, mebibytes = time.monotonic() - began, usage.ru_maxrss / 1024
    print(f"{what}: {seconds:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} s CPU, {mebibytes:.0f} MiB", file=sys.stderr)
    return seconds, mebibytes


def load(data: Path) -> None:
    from core.annotations.prepared import open_dataset, read_split

    read_split(open_dataset(data), "train")


def load_usual(data: Path) -> None:
    from pycocotools.coco import COCO

    COCO(train_file(data))


def thin(data: Path) -> None:
    arguments = ["subsample", "--rate", str(RATE), "--data", str(data)]
    os.execv(sys.executable, [sys.executable, "-m", "dedetr_cli", *arguments])


def thin_usual(data: Path) -> None:
    with train_file(data).open() as stream:
        parent = json.load(stream)
    subset = copy.deepcopy(parent)
    chosen = random.Random(0).sample(parent["images"], int(RATE * len(parent["images"])))
    image_ids = {image["id"] for image in chosen}
    subset["images"] = [image for image in subset["images"] if image["id"] in image_ids]
    subset["annotations"] = [entry for entry in subset["annotations"] if entry["image_id"] in image_ids]
    with (data / "usual.json").open("w") as stream:
        json.dump(subset, stream)


MEASURED: dict[str, Callable[[Path], None]] = {
    "load": load, "load-usual": load_usual, "thin": thin, "thin-usual": thin_usual,
}  # fmt: skip


def train_file(data: Path) -> Path:
    return data / "annotations" / "instances_train2017.json"


def make_layout(data: Path, num_images: int, num_annotations: int) -> Path:
    """Write a train file and, as COCO has it, a val file of a 24th of its size; return the train file."""
    generator = random.Random(0)
    shapes = [make_shape(generator) for _ in range(NUM_SHAPES)]
    for split, part in (("train", 1), ("val", 24)):
        (data / f"{split}2017").mkdir(parents=True)
        (data / "annotations").mkdir(exist_ok=True)
        file = data / "annotations" / f"instances_{split}2017.json"
        write_file(file, shapes, max(1, num_images // part), num_annotations // part, generator)
    return train_file(data)


def write_file(file: Path, shapes: list[str], num_images: int, num_annotations: int, generator: random.Random) -> None:
    image_ids = generator.sample(range(1, 6 * num_images), num_images)
    with file.open("w") as stream:
        stream.write('{"info": {"description": "made for a benchmark", "year": 2017}, "licenses": [], "images": [')
        for row, image_id in enumerate(image_ids):
            name = f"{image_id:012d}.jpg"
            stream.write(
                f'{", " if row else ""}{{"license": {row % 8}, "file_name": "{name}", '
                f'"coco_url": "http://images.example.org/train2017/{name}", "height": {HEIGHT}, "width": {WIDTH}, '
                f'"date_captured": "2013-11-14 11:18:45", "flickr_url": "http://farm.example.org/{image_id}_z.jpg", '
                f'"id": {image_id}}}'
            )
        stream.write('], "annotations": [')
        for row in range(num_annotations):
            stream.write(
                f'{", " if row else ""}{{{generator.choice(shapes)}, "image_id": {generator.choice(image_ids)}, '
                f'"category_id": {generator.randrange(NUM_CATEGORIES) + 1}, "id": {900_000_000_000 + row}}}'
            )
        categories = [{"supercategory": "thing", "id": k + 1, "name": f"class {k}"} for k in range(NUM_CATEGORIES)]
        stream.write(f'], "categories": {json.dumps(categories)}}}')


def make_shape(generator: random.Random) -> str:
    """Return an outline and what belongs to it: a polygon, or for one in a hundred a crowd's run lengths."""
    xs, ys = (sorted(round(generator.uniform(0, side), 2) for _ in range(2)) for side in (WIDTH - 2, HEIGHT - 2))
    left, top, width, height = xs[0], ys[0], round(xs[1] - xs[0] + 1, 2), round(ys[1] - ys[0] + 1, 2)
    is_crowd = generator.random() < 0.01
    if is_crowd:
        runs = [generator.randrange(1, 900) for _ in range(300)]
        outline = json.dumps({"counts": runs, "size": [HEIGHT, WIDTH]})
    else:
        num_points = min(150, 3 + int(generator.expovariate(1 / 18.5)))
        points = [
            round(generator.uniform(start, start + extent), 2)
            for _ in range(num_points)
            for start, extent in ((left, width), (top, height))
        ]
        outline = json.dumps([points])
    area = round(width * height * generator.uniform(0.3, 0.9), 4)
    return (
        f'"segmentation": {outline}, "area": {area}, "iscrowd": {int(is_crowd)}, '
        f'"bbox": [{left}, {top}, {width}, {height}]'
    )


if __name__ == "__main__":
    main()

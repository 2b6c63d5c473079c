from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.annotations.coco import inspect_coco, write_coco
from core.annotations.content import SplitContent
from core.annotations.readers.yolo import read_yolo
from core.annotations.records import Annotation, AnnotationSet, BoxXYWH, Category, ImageRecord
from core.annotations.writers.yolo import write_yolo
from core.errors import DataError, MachineError

from .yolo_sets import BOX, H, W, boxes_of, put


def content_of(
    folder: Path, images: Mapping[str, Iterable[tuple[int, BoxXYWH]]], size: tuple[int, int] = (W, H), **crowds: Any
) -> SplitContent:
    """A split with real image files; classes have the ids 3 and 7, and 9 without instances."""
    records: list[ImageRecord] = []
    annotations: list[Annotation] = []
    for index, (name, boxes) in enumerate(images.items(), start=1):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("1", size).save(path, format="PNG")
        records.append(ImageRecord(index, name, *size))
        for category_id, box in boxes:
            is_crowd = name in crowds.get("crowds", ())
            annotations.append(Annotation(len(annotations) + 1, index, category_id, box, box[2] * box[3], is_crowd))
    categories = (Category(7, "dog: no"), Category(3, "cät 'x\""), Category(9, "yes"))
    return SplitContent(AnnotationSet(tuple(records), tuple(annotations), categories), folder)


def test_write(tmp_path: Path) -> None:
    train = content_of(tmp_path / "in", {"é b/a.png": [(7, BOX), (3, BOX)], "z z.png": []})
    out = tmp_path / "out"
    out.mkdir()
    assert write_yolo({"train": train, "val": train}, out) == []
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == sorted(
        ["data.yaml"]
        + [f"{kind}/{split}/{name}" for split in ("train", "val") for kind, name in (
            ("images", "é b/a.png"), ("images", "z z.png"), ("labels", "é b/a.txt"), ("labels", "z z.txt"))]
    )  # fmt: skip
    assert (out / "labels/train/é b/a.txt").read_text() == "1 0.5 0.5 0.25 0.2\n0 0.5 0.5 0.25 0.2\n"
    assert (out / "images/train/é b/a.png").read_bytes() == (tmp_path / "in/é b/a.png").read_bytes()
    description = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert description == {
        "train": "images/train",
        "val": "images/val",
        "nc": 3,
        "names": {0: "cät 'x\"", 1: "dog: no", 2: "yes"},
    }
    source = read_yolo(out)
    assert source.notes == ()
    assert boxes_of(source) == {"z z.png": [], "é b/a.png": [("dog: no", BOX), ("cät 'x\"", BOX)]}


def test_write_says_what_it_changes(tmp_path: Path) -> None:
    inside = (0.0, 0.0, 5.0, 5.0)
    images: dict[str, list[tuple[int, BoxXYWH]]] = {
        "a.png": [(3, (-5.0, 10.0, 10.0, 40.0)), (3, (50.0, 5.0, 5.0, 5.0)), (3, inside)],
        "a.jpg": [(7, inside)],
        "A.png": [(3, inside)],
        "a-2.png": [(3, inside)],
        "images/b.png": [(3, inside)],
        ".hidden/.c.png": [(3, inside)],
        "plain": [(3, inside)],
        "d.gif": [(3, inside)],
        "crowd.png": [(3, inside)],
    }
    notes = write_yolo({"test": content_of(tmp_path / "in", images, crowds=["crowd.png"])}, tmp_path / "out")
    assert notes == [
        "crowds, for which YOLO has no word, left out: 1",
        "boxes that reach over an image's edge, clipped: 1",
        "boxes of which nothing is inside their image, left out: 1",
        "images that got another name, as labels go by names without endings: 6",
        "GIF images, which Ultralytics does not read: 1",
        "Ultralytics asks for a train split, and there is none",
        "Ultralytics asks for a val split, and there is none",
    ]
    source = read_yolo(tmp_path / "out")
    boxes = boxes_of(source, "test")
    assert len(boxes) == len(images)
    assert boxes["a.png"] == [("cät 'x\"", (0, 10, 5, 20)), ("cät 'x\"", inside)]
    assert boxes["crowd.png"] == []
    assert Counter(name for found in boxes.values() for name, _ in found) == {"cät 'x\"": 8, "dog: no": 1}
    assert {"_images/b.png", "_.hidden/_.c.png", "plain.jpg"} <= boxes.keys()


def test_write_refuses(tmp_path: Path) -> None:
    content = content_of(tmp_path / "in", {"a.png": [(3, BOX)], "b": []})
    put(tmp_path, {"out/images": "a file where a folder goes"})
    with pytest.raises(MachineError, match=r"a\.png: cannot copy"):
        write_yolo({"train": content}, tmp_path / "out")
    (tmp_path / "in/b").write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        write_yolo({"train": content}, tmp_path / "second")


@pytest.mark.parametrize("size", [(20000, 10), (7, 20000), (640, 480), (1, 1), (333, 777)], ids=str)
def test_round_trip_is_exact(tmp_path: Path, size: tuple[int, int]) -> None:
    rng = random.Random(5)
    boxes: list[tuple[int, BoxXYWH]] = [(3, (0.0, 0.0, float(size[0]), float(size[1])))]
    for digits in [0, 1, 2, 3, 6] * 12:
        spans = []
        for side in size:
            start = round(rng.uniform(0, side), digits)
            length = round(rng.choice([side - start, rng.uniform(0, side - start)]), digits)
            spans.append((start, length if start + length <= side else side - start))
        if all(length > 0 for _, length in spans):
            boxes.append((rng.choice([3, 7]), (spans[0][0], spans[1][0], spans[0][1], spans[1][1])))
    content = content_of(tmp_path / "in", {"a.png": boxes, "b.png": []}, size)
    assert write_yolo({"train": content, "val": content}, tmp_path / "out") == []
    back = read_yolo(tmp_path / "out")
    for split in ("train", "val"):
        found = [box for _, box in boxes_of(back, split)["a.png"]]
        assert len(found) == len(boxes)
        for box, (_, expected) in zip(found, boxes, strict=True):
            assert box == pytest.approx(expected, abs=1e-9, rel=0)
    assert back.splits["train"].findings.partly_outside_boxes == 0
    write_coco(tmp_path / "back.json", back.splits["train"].annotations)
    again, findings = inspect_coco(tmp_path / "back.json")
    assert again.annotations == back.splits["train"].annotations.annotations
    assert findings.zero_size_boxes == 0


CLASS_NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip),
    min_size=1,
    max_size=5,
    unique=True,
)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(names=CLASS_NAMES)
@FEW
def test_class_names_survive(tmp_path: Path, names: list[str]) -> None:
    categories = tuple(Category(index, name) for index, name in enumerate(names))
    picture = content_of(tmp_path / "in", {"a.png": []}).annotations.images
    annotation = Annotation(1, 1, 0, BOX, 60.0, is_crowd=False)
    content = SplitContent(AnnotationSet(picture, (annotation,), categories), tmp_path / "in")
    write_yolo({"train": content}, tmp_path / "out")
    assert read_yolo(tmp_path / "out").splits["train"].annotations.categories == categories

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageOps

from core.annotations.images import open_image
from core.annotations.readers.yolo import is_yolo, read_yolo
from core.annotations.readers.yolo_paths import first_images
from core.annotations.records import Category
from core.annotations.writers.yolo import write_yolo

from .yolo_sets import BOX, LINE, YAML, H, W, boxes_of, labelled, names_of, put, refused, ultralytics


def test_data_yaml(tmp_path: Path) -> None:
    root = ultralytics(tmp_path / "ds", "1 0.5 0.5 1 1\n1.000000 0.25 0.5 0.5 0.4\r\n\n")
    for path in (root, root / "data.yaml"):
        assert is_yolo(path)
        source = read_yolo(path)
        assert (source.path, source.format, source.notes) == (path, "yolo", ())
        assert names_of(source) == {"train": ["a.png", "b.png"], "val": ["v.png"]}
        assert boxes_of(source) == {
            "a.png": [("cat", BOX)],
            "b.png": [("dog", (0, 0, 40, 30)), ("dog", (0, 9, 20, 12))],
        }
        assert [content.image_root for content in source.splits.values()] == [
            root / "images/train",
            root / "images/val",
        ]
        for content in source.splits.values():
            assert content.annotations.categories == (Category(0, "cat"), Category(1, "dog"))
            assert {(image.width, image.height) for image in content.annotations.images} == {(W, H)}
        ids = [image.id for content in source.splits.values() for image in content.annotations.images]
        assert len(set(ids)) == len(ids) == 3


CATS = "names: [cat]\n"
FORMS: dict[str, tuple[dict[str, str], dict[str, list[str]]]] = {
    "roboflow": (
        {
            **labelled("train/images/a", "valid/images/v", "test/images/t"),
            "data.yaml": f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\n{CATS}",
        },
        {"train": ["a.png"], "val": ["v.png"], "test": ["t.png"]},
    ),
    "roboflow-darknet": (
        {
            **labelled("train/a", "valid/v"),
            "train/_darknet.labels": "cat\n",
            "valid/_darknet.labels": "cat",
            "README.roboflow.txt": "hello",
        },
        {"train": ["a.png"], "val": ["v.png"]},
    ),
    "mapping-of-names": (
        {**labelled("images/a"), "my.yaml": "train: images\nnames:\n  0: cat\n  1: dog\n"},
        {"train": ["a.png"]},
    ),
    "path": (
        {**labelled("ds/images/train/a", "ds/images/val/v"), "cfg/data.yaml": f"path: ../ds\n{YAML}"},
        {"train": ["a.png"], "val": ["v.png"]},
    ),
    "wrong-path": (
        {**labelled("images/train/a", "images/val/v"), "data.yaml": f"path: ../datasets/coco8\n{YAML}"},
        {"train": ["a.png"], "val": ["v.png"]},
    ),
    "path-without-images": (
        {**labelled("images/train/a", "images/val/v"), "other/x": "", "data.yaml": f"path: other\n{YAML}"},
        {"train": ["a.png"], "val": ["v.png"]},
    ),
    "moved": (
        {
            **labelled("images/train/a", "images/val/v"),
            "data.yaml": f"train: /content/set/images/train\nvalidation: C:\\set\\images\\val\n{CATS}",
        },
        {"train": ["a.png"], "val": ["v.png"]},
    ),
    "list-of-folders": (
        {**labelled("one/images/a", "two/images/a"), "data.yaml": f"train: [one/images, two/images]\n{CATS}"},
        {"train": ["one/images/a.png", "two/images/a.png"]},
    ),
    "yaml-lists": (
        {
            **labelled("images/train/a b", "images/val/v"),
            "data.yaml": f"train: train.txt\nval: val.txt\n{CATS}",
            "train.txt": "data/images/train/a b.png\n\n",
            "val.txt": "./images/val/v.png",
        },
        {"train": ["a b.png"], "val": ["v.png"]},
    ),
    "darknet": (
        {
            **labelled("obj_train_data/a", "obj_valid_data/v"),
            "obj.data": "classes = 1\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup=b",
            "obj.names": "cat\n\n",
            "train.txt": "data/obj_train_data/a.png\n",
            "valid.txt": "data\\obj_valid_data\\v.png\r\n",
        },
        {"train": ["a.png"], "val": ["v.png"]},
    ),
    "lists-alone": (
        {
            **labelled("images/a", "images/v"),
            "classes.txt": "cat\n",
            "train.txt": "/home/me/set/images/a.png\n",
            "val.txt": "images/v.png\n",
        },
        {"train": ["a.png"], "val": ["v.png"]},
    ),
    "images-split": (
        {**labelled("images/train/a", "images/val/v"), "labels/classes.txt": "cat\n"},
        {"train": ["a.png"], "val": ["v.png"]},
    ),
    "images": ({**labelled("images/a", "images/deep/er"), "classes.txt": "cat"}, {"train": ["a.png", "deep/er.png"]}),
    "flat": ({**labelled("a", "é 'q\" ü"), "classes.txt": "cat\n"}, {"train": ["a.png", "é 'q\" ü.png"]}),
    "beside-in-images": ({"images/a.png": "", "images/a.txt": LINE, "coco.names": "cat"}, {"train": ["a.png"]}),
    "last-images-folder": (
        {"images/x/images/a.png": "", "images/x/labels/a.txt": LINE, "data.yaml": f"train: images\n{CATS}"},
        {"train": ["x/images/a.png"]},
    ),
    "hidden-files": (
        {**labelled("a"), "._a.png": "", "__MACOSX/b.png": "", ".cache/c.png": "", "classes.txt": "cat"},
        {"train": ["a.png"]},
    ),
    "empty-test": (
        {**labelled("images/a"), "data.yaml": f"train: images\nval: ''\ntest: # none\n{CATS}"},
        {"train": ["a.png"]},
    ),
}


@pytest.mark.parametrize(("files", "names"), FORMS.values(), ids=FORMS)
def test_forms(tmp_path: Path, files: dict[str, str], names: dict[str, list[str]]) -> None:
    root = put(tmp_path / "set", files)
    path = root / "cfg" if (root / "cfg").is_dir() else root
    assert is_yolo(path)
    source = read_yolo(path)
    assert names_of(source) == names
    for split in source.splits:
        assert all(boxes == [("cat", BOX)] for boxes in boxes_of(source, split).values())
        for image in source.splits[split].annotations.images:
            assert (source.splits[split].image_root / image.file_name).is_file()


def test_what_is_not_yolo(tmp_path: Path) -> None:
    captions = put(tmp_path / "captions", {"a.png": "", "a.txt": "a red picture of nothing much"})
    ours = put(tmp_path / "ours", {"dataset.yaml": "format_version: 1\nnames: [a]\n", "images/a.png": ""})
    odd = put(tmp_path / "odd", {"data.yaml/x": "", "train.txt/x": "", "labels.txt": LINE, "a.json": "{}"})
    for path in (captions, ours, odd, ours / "dataset.yaml", odd / "a.json", tmp_path / "missing", tmp_path):
        assert not is_yolo(path)
        refused(path, "F03", "no YOLO data set")


def test_a_thousand_folders_in_each_other(tmp_path: Path) -> None:
    root = put(tmp_path, {"images/a.png": "", "images/a.txt": LINE})
    deepest = root
    for _ in range(1200):
        deepest /= "x"
        deepest.mkdir()
    try:
        assert is_yolo(root)
        assert names_of(read_yolo(root)) == {"train": ["a.png"]}
        assert first_images(root / "x", 1) == []
    finally:  # functions that remove trees call themselves for every level, too
        while deepest != root:
            deepest.rmdir()
            deepest = deepest.parent


def test_obj_data_given_as_file(tmp_path: Path) -> None:
    files, names = FORMS["darknet"]
    assert names_of(read_yolo(put(tmp_path, files) / "obj.data")) == names


def test_classes_without_names(tmp_path: Path) -> None:
    root = put(tmp_path, {**labelled("images/a"), **labelled("images/b", line="7 0.5 0.5 0.1 0.1")})
    source = read_yolo(root)
    assert source.splits["train"].annotations.categories == (Category(0, "0"), Category(7, "7"))
    assert source.notes == ("nothing says what the classes are called: their numbers are their names",)
    put(root, {"data.yaml": "nc: 9\ntrain: images\n"})
    assert len(read_yolo(root).splits["train"].annotations.categories) == 9


def test_names_are_read_as_written(tmp_path: Path) -> None:
    written = "names: [no, 007, 1.10, 2020-01-01, 'null', é ü, \"a'b\"]\ntrain: images/train\n"
    content = read_yolo(ultralytics(tmp_path, description=written)).splits["train"]
    expected = ["no", "007", "1.10", "2020-01-01", "null", "é ü", "a'b"]
    assert [category.name for category in content.annotations.categories] == expected


def test_what_is_noted(tmp_path: Path) -> None:
    files = {
        **labelled("images/a", "images/dropped"),
        "images/empty.png": "",
        "labels/empty.txt": "\n",
        "images/missing.png": "",
        "labels/orphan.txt": LINE,
        "labels/outline.txt": "0 0.25 0.25 0.75 0.5 0.5 0.75\n" + LINE * 2,
        "images/outline.png": "",
        "list.txt": "images/a.png\nimages/empty.png\n/x/images/missing.png\nimages/outline.png\n",
        "data.yaml": "train: list.txt\ntest: nowhere\nnames: [cat, dog]\npath: gone",
    }
    source = read_yolo(put(tmp_path, files))
    assert source.notes == (
        "`path` of data.yaml is no folder here, its own folder was used",
        "`test` of data.yaml is not there and was left out",
        "paths that name nothing here, found by their last parts: 1",
        "outlines, of which the boxes around them were taken: 1",
        "lines that repeat another of their file, kept: 1",
        "images without a label file, used as negatives: 1",
        "label files of images that are in no split, left out: 1",
        "label files without an image, left out: 1",
    )
    assert boxes_of(source)["outline.png"] == [("cat", (10, 7.5, 20, 15)), ("cat", BOX), ("cat", BOX)]
    assert boxes_of(source)["missing.png"] == boxes_of(source)["empty.png"] == []
    findings = source.splits["train"].findings
    assert (findings.images_without_objects, findings.classes_without_instances) == (2, ("dog",))


def test_key_points_are_left_out(tmp_path: Path) -> None:
    line = "0 0.5 0.5 0.25 0.2 0.4 0.4 2 0.6 0.6 1\n"
    root = put(
        tmp_path, {**labelled("images/a", line=line), "data.yaml": "train: images\nnames: [cat]\nkpt_shape: [2, 3]\n"}
    )
    source = read_yolo(root)
    assert boxes_of(source) == {"a.png": [("cat", BOX)]}
    assert source.notes == ("the key points were left out",)
    put(root, {"labels/a.txt": LINE})
    refused(root, "F09", "labels/a.txt:1", "has 5 columns")


def test_f08_zero_size_boxes_are_dropped_and_counted(tmp_path: Path) -> None:
    content = read_yolo(ultralytics(tmp_path, "0 0.5 0.5 0 0.2\n1 0.5 0.5 0.2 1e-12\n" + LINE)).splits["train"]
    assert content.findings.zero_size_boxes == 2
    assert len(content.annotations.annotations) == 2


def test_f10_rounding_and_boxes_over_the_edge(tmp_path: Path) -> None:
    lines = "0 0.966667 0.016667 0.066667 0.033335\n1 1.0005 0.5 0.1 0.1\n1 0.95 0.5 0.2 0.1\n" + LINE
    source = read_yolo(ultralytics(tmp_path, lines))
    (_, first), (_, second), (_, third), _ = boxes_of(source)["b.png"]
    assert first == (37.33334, 0.0, 2.66666, 1.000035)
    assert second == (38.02, 13.5, 4.0, 3.0)
    assert third == (34.0, 13.5, 8.0, 3.0)
    assert source.splits["train"].findings.partly_outside_boxes == 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(W, H), (W, W)], ids=["wide", "square"])
def test_f24_labels_are_on_the_rotated_image(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    """The white box of the stored pixels is found where the label of the upright image says, and exported there."""
    stored_box = (5, 8, 20, 14)
    picture = Image.new("RGB", size, "black")
    picture.paste((255, 255, 255), stored_box)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images/a.png", exif=exif)
    with Image.open(tmp_path / "images/a.png") as stored:
        upright = ImageOps.exif_transpose(stored)
    left, top, right, bottom = white_box(upright)
    numbers = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    label = [number / side for number, side in zip(numbers, upright.size * 2, strict=True)]
    put(tmp_path, {"labels/a.txt": f"0 {' '.join(map(str, label))}"})
    source = read_yolo(tmp_path)
    (image,) = source.splits["train"].annotations.images
    (annotation,) = source.splits["train"].annotations.annotations
    x, y, w, h = annotation.box_xywh_px
    decoded = open_image(tmp_path / "images/a.png", (image.width, image.height))
    assert white_box(decoded) == (x, y, x + w, y + h)
    write_yolo(source.splits, tmp_path / "out")
    exported = (tmp_path / "out/labels/train/a.txt").read_text().split()
    assert [float(word) for word in exported] == pytest.approx([0, *label], abs=1e-9)


def white_box(picture: Image.Image) -> tuple[int, int, int, int]:
    box = picture.convert("L").getbbox()
    assert box is not None
    return box


# Writing.

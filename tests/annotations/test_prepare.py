from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.annotations import demo
from core.annotations.coco import read_coco
from core.annotations.content import ReadOptions
from core.annotations.prepare import prepare
from core.annotations.prepare_demo import prepare_demo
from core.annotations.prepare_report import PrepareReport
from core.annotations.prepared import open_dataset, read_split
from core.annotations.splits import SplitPlan
from core.annotations.subsets import subsample
from core.errors import DataError, MachineError, UsageError

from .conftest import all_bytes, coco_dict, make_cityscapes_layout, make_coco_layout, make_voc, write_images, write_json
from .test_voc import LISTS, put_xml, voc_xml


@pytest.fixture(autouse=True)
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few pictures; the drawing is the real one."""
    monkeypatch.setattr(demo.draw_demo_splits, "__defaults__", (0, 6, 3))


def counts(report: PrepareReport) -> dict[str, tuple[int, int]]:
    return {split.name: (split.num_images, split.num_annotations) for split in report.splits}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_demo(tmp_path: Path) -> None:
    report = prepare_demo(tmp_path / "data")
    assert report.format == report.recipe == "demo"
    assert {name: images for name, (images, _) in counts(report).items()} == {"train": 6, "val": 3}
    assert open_dataset(tmp_path / "data").recipe == "demo"
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"demo-{i}.png" for i in range(1, 7)]
    assert leftovers(tmp_path) == []


def test_demo_is_equal_twice_and_replaces_itself(tmp_path: Path) -> None:
    prepare_demo(tmp_path / "data")
    first = all_bytes(tmp_path)
    subsample(open_dataset(tmp_path / "data"), 0.5)
    report = prepare_demo(tmp_path / "data")
    assert all_bytes(tmp_path) == first
    assert any("subset files" in note and note.endswith(": 1") for note in report.notes)


def test_demo_leaves_own_pictures_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_text("mine")
    report = prepare_demo(tmp_path / "data")
    assert all_bytes(tmp_path / "images") == {"mine.jpg": b"mine"}
    assert report.unlabelled is None
    assert any("left alone" in note for note in report.notes)


def test_voc_with_lists(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", LISTS)
    put_xml(root, voc_xml("a1.jpg", [("ant", 3, 4, 3, 9), ("ant", 3, 4, 9, 9)]))
    report = prepare(root, tmp_path / "data")
    assert report.format == "voc"
    assert report.name == "voc"
    assert report.classes == ("ant", "zebra")
    assert counts(report) == {"train": (3, 3), "val": (1, 1), "test": (1, 1)}
    assert "train: boxes without width or height, dropped: 1" in report.notes
    assert "XML files that are in no list, left out: 1" in report.notes
    dataset = open_dataset(tmp_path / "data")
    assert dataset.splits["test"].image_root == root / "JPEGImages"
    json.dumps(asdict(report), default=str)


def test_voc_without_lists_gets_a_val_split(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    report = prepare(root, tmp_path / "data")
    assert counts(report) == {"train": (5, 5), "val": (1, 1)}
    assert any("1 of 6 images were put aside for it, seed 0" in note for note in report.notes)
    assert counts(prepare(root, tmp_path / "half", plan=SplitPlan(0.5))) == {"train": (3, 3), "val": (3, 3)}


def test_voc_and_coco_agree(tmp_path: Path) -> None:
    """VOC prepared with copies is COCO, and that prepared again is the same."""
    prepare(make_voc(tmp_path / "voc", LISTS), tmp_path / "first", copy_images=True)
    report = prepare(tmp_path / "first", tmp_path / "second", format="coco", copy_images=True)
    assert report.format == "coco"
    for split in ("train", "val", "test"):
        first, second = (read_split(open_dataset(tmp_path / name), split)[0] for name in ("first", "second"))
        assert first == second
    assert (tmp_path / "second" / "images" / "test" / "a4.jpg").is_file()


def test_copied_images_need_no_source(tmp_path: Path) -> None:
    root = make_cityscapes_layout(tmp_path / "cs", tmp_path / "cs" / "CocoFormatAnnos")
    report = prepare(root, tmp_path / "data", copy_images=True)
    assert report.format == "cityscapes"
    shutil.rmtree(root)
    dataset = open_dataset(tmp_path / "data")
    for image in read_split(dataset, "val")[0].images:
        assert (dataset.splits["val"].image_root / image.file_name).is_file()


def test_coco_layout(tmp_path: Path) -> None:
    report = prepare(make_coco_layout(tmp_path / "coco"), tmp_path / "data")
    assert report.format == "coco"
    assert counts(report) == {"train": (5, 8), "val": (3, 4)}
    assert report.splits[0].class_counts == {"cat": 4, "dog": 4}
    assert report.splits[0].num_empty_images == 1


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("train/_annotations.coco.json", "train"),
        ("annotations/train.json", "images"),
        ("annotations/instances_train.json", "images/train"),
        ("train.json", "."),
    ],
)
def test_other_coco_folders(tmp_path: Path, file: str, images: str) -> None:
    content = coco_dict(10)
    write_json(tmp_path / "src" / file, content)
    write_images(tmp_path / "src" / images, content)
    report = prepare(tmp_path / "src", tmp_path / "data")
    assert report.format == "coco"
    assert {name: images for name, (images, _) in counts(report).items()} == {"train": 8, "val": 2}


def test_one_coco_file(tmp_path: Path) -> None:
    content = coco_dict(10)
    write_images(tmp_path / "src" / "images", content)
    report = prepare(write_json(tmp_path / "src" / "labels.json", content), tmp_path / "data")
    assert report.name == "labels"
    assert sum(images for images, _ in counts(report).values()) == 10


def fault_missing(root: Path) -> None:
    for name in ("001.png", "002.png"):
        (root / "train2017" / name).unlink()


def fault_truncated(root: Path) -> None:
    path = root / "train2017" / "001.png"
    path.write_bytes(path.read_bytes()[:-30])


def fault_empty(root: Path) -> None:
    (root / "train2017" / "001.png").write_bytes(b"")


def fault_text(root: Path) -> None:
    (root / "train2017" / "001.png").write_text("not an image")


def fault_size(root: Path) -> None:
    Image.new("RGB", (41, 30)).save(root / "train2017" / "001.png")


def fault_classes(root: Path) -> None:
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 8, "name": "emu"})
    write_json(path, content)


def fault_json(root: Path) -> None:
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        pytest.param(fault_json, ["instances_val2017.json:1:13"], id="F01-truncated"),
        pytest.param(fault_missing, ["2 of 5 train images", "001.png: the image is missing;"], id="F19-missing"),
        pytest.param(fault_truncated, ["001.png", "cannot be read"], id="F20-truncated"),
        pytest.param(fault_empty, ["001.png", "empty"], id="F21-zero-bytes"),
        pytest.param(fault_text, ["001.png", "not an image"], id="F22-not-an-image"),
        pytest.param(fault_size, ["001.png", "41 x 30", "40 x 30"], id="F25-size"),
        pytest.param(fault_classes, ["only it has 'emu' (id 8)"], id="F28-classes"),
    ],
)
def test_faults_leave_nothing_behind(tmp_path: Path, coco_layout: Path, spoil: Any, parts: list[str]) -> None:
    spoil(coco_layout)
    before = all_bytes(tmp_path)
    with pytest.raises(DataError) as raised:
        prepare(coco_layout, tmp_path / "data")
    for part in parts:
        assert part in str(raised.value)
    assert all_bytes(tmp_path) == before
    assert not (tmp_path / "data").exists()
    assert leftovers(tmp_path) == []


def test_f25_voc_size_differs(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    put_xml(root, voc_xml("a1.jpg", [("ant", 1, 2, 3, 4)], (400, 300)))
    with pytest.raises(DataError, match="40 x 30 pixels, its annotation file says 400 x 300"):
        prepare(root, tmp_path / "data")


def test_f08_strict_refuses_zero_size(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    put_xml(root, voc_xml("a1.jpg", [("ant", 3, 4, 3, 9)]))
    with pytest.raises(DataError, match="without width or height"):
        prepare(root, tmp_path / "data", strict=True)


def test_f27_picture_in_train_and_val(tmp_path: Path, coco_layout: Path) -> None:
    shutil.copyfile(coco_layout / "train2017" / "002.png", coco_layout / "val2017" / "501.png")
    report = prepare(coco_layout, tmp_path / "data")
    assert "pictures that are in two splits: 1, such as train/002.png = val/501.png" in report.notes
    with pytest.raises(DataError, match=r"train/002\.png = val/501\.png"):
        prepare(coco_layout, tmp_path / "strict", strict=True)


def test_f27_repeated_pictures_are_not_split(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    for index in range(2, 6):
        shutil.copyfile(root / "JPEGImages" / "a1.jpg", root / "JPEGImages" / f"a{index}.jpg")
    report = prepare(root, tmp_path / "data", plan=SplitPlan(0.5))
    assert sorted(images for images, _ in counts(report).values()) == [1, 5]
    assert any(note.endswith("side of the split: 4") for note in report.notes)


def test_a_failed_run_keeps_the_earlier_data_set(tmp_path: Path, coco_layout: Path) -> None:
    prepare(coco_layout, tmp_path / "data")
    before = all_bytes(tmp_path / "data")
    fault_text(coco_layout)
    with pytest.raises(DataError):
        prepare(coco_layout, tmp_path / "data")
    assert all_bytes(tmp_path / "data") == before


def test_f52_foreign_folders_are_not_replaced(tmp_path: Path, coco_layout: Path) -> None:
    out = tmp_path / "data"
    out.mkdir()
    prepare(coco_layout, out)  # an empty folder may be taken
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"also holds notes\.txt"):
        prepare(coco_layout, out)
    (out / "dataset.yaml").unlink()
    with pytest.raises(UsageError, match="did not make it"):
        prepare(coco_layout, out)
    assert (out / "notes.txt").read_text() == "mine"


def test_f71_out_is_a_file(tmp_path: Path, coco_layout: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(MachineError, match="a file of this name exists"):
        prepare(coco_layout, tmp_path / "data")
    with pytest.raises(MachineError):
        prepare(coco_layout, tmp_path / "data" / "deeper")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"format": "labelme"}, "--format"),
        ({"format": "demo"}, "--format"),
        ({"plan": SplitPlan(0.5)}, "--val"),
        ({"options": ReadOptions(one_based=True)}, "--one-based"),
        ({"out": "."}, "--out"),
        ({"out": "coco"}, "--out"),
    ],
    ids=str,
)
def test_f76_arguments_that_do_not_fit(
    tmp_path: Path, coco_layout: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = arguments.pop("source", coco_layout)
    before = all_bytes(tmp_path)
    with pytest.raises(UsageError) as raised:
        prepare(source, Path(arguments.pop("out", "data")), **arguments)
    assert raised.value.where == where
    assert all_bytes(tmp_path) == before


def test_f75_nearest_format(tmp_path: Path, coco_layout: Path) -> None:
    with pytest.raises(UsageError) as raised:
        prepare(coco_layout, tmp_path / "data", format="citiscapes")
    assert raised.value.hint == "did you mean 'cityscapes'?"


def test_val_rate_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--val"):
        prepare(make_voc(tmp_path / "voc"), tmp_path / "data", plan=SplitPlan(1.5))


def test_unknown_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not recognised") as raised:
        prepare(tmp_path / "empty", tmp_path / "data")
    assert all(word in str(raised.value.hint) for word in ("Pascal VOC", "COCO", "Cityscapes"))
    with pytest.raises(DataError, match="nothing in the format cityscapes"):
        prepare(make_coco_layout(tmp_path / "coco"), tmp_path / "data", format="cityscapes")


def test_f38_names_are_kept_as_they_are(tmp_path: Path) -> None:
    content = coco_dict(4)
    content["categories"][0]["name"] = "=[red]yes\x1b[0m\n: ü"
    write_images(tmp_path / "src", content)
    report = prepare(write_json(tmp_path / "src" / "a.json", content), tmp_path / "data")
    assert report.classes[0] == "=[red]yes\x1b[0m\n: ü"
    assert open_dataset(tmp_path / "data").classes[0].name == report.classes[0]
    assert read_coco(tmp_path / "data" / "annotations" / "train.json").categories[0].name == report.classes[0]

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.annotations.coco import read_coco
from core.annotations.content import SplitContent
from core.annotations.prepared import open_dataset, read_split, write_dataset
from core.errors import DataError, MachineError

from .conftest import all_bytes, coco_dict, make_cityscapes_layout, make_coco_layout, make_voc, write_images, write_json


def make_prepared(root: Path) -> Path:
    splits = {}
    for split, content in (("train", coco_dict(5)), ("val", coco_dict(3, first_id=50))):
        write_images(root / "images" / split, content)
        annotations = read_coco(write_json(root.parent / f"{split}.json", content))
        splits[split] = SplitContent(annotations, root / "images" / split)
    write_dataset(root, "pets: a [test]", splits, sources=["made up"], recipe="demo")
    return root


def test_round_trip(tmp_path: Path) -> None:
    dataset = open_dataset(make_prepared(tmp_path / "dä ta"))
    assert dataset.name == "pets: a [test]"
    assert dataset.recipe == "demo"
    assert [(c.id, c.name) for c in dataset.classes] == [(3, "cat"), (7, "dog")]
    assert list(dataset.splits) == ["train", "val"]
    annotations, findings = read_split(dataset, "val")
    assert annotations == read_coco(tmp_path / "val.json")
    assert findings.images_without_objects == 1
    written = yaml.safe_load((dataset.root / "dataset.yaml").read_text())
    assert written["format_version"] == 1
    assert written["made_by"] == "dedetr"
    assert written["classes"][0] == {"id": 3, "name": "cat", "num_boxes": {"train": 4, "val": 2}}
    train = written["splits"]["train"]
    assert (train["images"], train["num_images"], train["num_annotations"]) == ("images/train", 5, 8)


def test_equal_bytes_and_movable(tmp_path: Path) -> None:
    first, second = (make_prepared(tmp_path / name / "data") for name in "ab")
    assert all_bytes(first) == all_bytes(second)
    first.rename(tmp_path / "moved")
    assert len(read_split(open_dataset(tmp_path / "moved"), "train")[0].images) == 5


@pytest.mark.parametrize("name", ["x" * 300, "x\0y", "\ud800"])
def test_names_that_no_folder_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no data set at"):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize("make_folder", [False, True])
def test_no_data_set(tmp_path: Path, make_folder: bool) -> None:
    root = tmp_path / "data"
    if make_folder:
        root.mkdir()
    with pytest.raises(DataError, match=r"no data set at .*data") as raised:
        open_dataset(root)
    assert raised.value.exit_code == 3
    assert "dedetr prepare-data" in str(raised.value.hint)


def test_source_that_is_not_prepared(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    with pytest.raises(DataError, match="no data set") as raised:
        open_dataset(root)
    assert f"dedetr prepare-data {root}" in str(raised.value.hint)


def edited(root: Path, **changes: Any) -> None:
    path = root / "dataset.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2, this dedetr reads up to 1"),
        ({"format_version": None}, "format_version"),
        ({"format_version": "1"}, "format_version"),
        ({"name": 5}, "name: "),
        ({"extra": 5}, "extra: "),
        ({"classes": []}, "classes: "),
        ({"classes": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "ids and names must differ"),
        ({"splits": {"train": {"images": "images"}}}, "splits.train.annotations: "),
        ({"splits": {"train": {"images": "images", "annotations": "no.json"}}}, "splits.train.annotations: .*no.json"),
        (
            {"splits": {"train": {"images": ".", "annotations": "x" * 300}}},
            "splits.train.annotations: .*does not exist",
        ),
        ({"classes": [{"id": 2**63, "name": "a"}]}, "classes.0.id: "),
        ({"format_version": 2**70}, "format_version"),
        ({"splits": {"train": {"images": "no", "annotations": "annotations/train.json"}}}, "splits.train.images: .*no"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_f76_faults_of_dataset_yaml(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    root = make_prepared(tmp_path / "data")
    edited(root, **changes)
    with pytest.raises(DataError, match=message) as raised:
        open_dataset(root)
    assert "dataset.yaml" in str(raised.value.where)


MISLABELLED = ("!!int ''", "!!float ''", "!!bool maybe", "!!timestamp x", "2001-99-99", "1:" * 200 + "1.5")
"""Values that are not what their tags or forms say; PyYAML raises all kinds of exceptions for them."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("name: [", "dataset.yaml:1", id="F77-cut-off"),
        pytest.param("\tname: a", "dataset.yaml:1", id="F77-tab"),
        pytest.param("", "format_version", id="F77-empty"),
        pytest.param("- 1", "format_version", id="F77-list"),
        pytest.param("x: !!python/object/apply:os.mkdir [canary]", "not valid YAML", id="F34-object"),
        pytest.param(b"\xff\xfe\x00", "dataset.yaml", id="F77-bytes"),
        pytest.param("format_version: 0x" + "f" * 4000, "format_version", id="F76-endless-number"),
        *(pytest.param(f"x: {value}", "not valid YAML", id=f"F77-{value[:16]}") for value in MISLABELLED),
    ],
)
def test_dataset_yaml_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)
    assert not (tmp_path / "canary").exists()


def test_coco_layout(coco_layout: Path) -> None:
    dataset = open_dataset(coco_layout)
    assert dataset.name == "coco"
    assert dataset.recipe is None
    assert dataset.splits["train"].image_root == coco_layout / "train2017"
    assert dataset.splits["val"].annotation_file == coco_layout / "annotations" / "instances_val2017.json"
    assert [(c.id, c.name) for c in dataset.classes] == [(3, "cat"), (7, "dog")]
    assert len(read_split(dataset, "train")[0].images) == 5


def test_coco_layout_without_its_images(tmp_path: Path) -> None:
    root = make_coco_layout(tmp_path / "coco")
    (root / "val2017").rename(root / "elsewhere")
    with pytest.raises(DataError, match="folder of the val images is missing") as raised:
        open_dataset(root)
    assert str(raised.value.where) == str(root / "val2017")


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_cityscapes_layout(tmp_path: Path, place: str) -> None:
    root = tmp_path / "cityscapes"
    folder = (root if place == "inside" else tmp_path) / "CocoFormatAnnos"
    dataset = open_dataset(make_cityscapes_layout(root, folder))
    annotations, _ = read_split(dataset, "val")
    assert annotations.images[0].file_name == "aachen/500.png"
    assert (dataset.splits["val"].image_root / annotations.images[0].file_name).is_file()
    assert dataset.splits["val"].image_root == root / "leftImg8bit" / "val"


def test_cityscapes_without_its_boxes(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="no folder CocoFormatAnnos"):
        open_dataset(tmp_path)
    (tmp_path / "CocoFormatAnnos").mkdir()
    with pytest.raises(DataError, match=r"no cityscapes_train_cocostyle\.json"):
        open_dataset(tmp_path)


def test_f28_splits_with_other_classes(coco_layout: Path) -> None:
    content = coco_dict(5)
    content["categories"][1]["name"] = "wolf"
    write_json(coco_layout / "annotations" / "instances_train2017.json", content)
    with pytest.raises(DataError, match=r"it lacks 'dog' \(id 7\); only it has 'wolf' \(id 7\)") as raised:
        read_split(open_dataset(coco_layout), "train")
    assert "instances_train2017.json: categories" in str(raised.value.where)


def test_missing_split(coco_layout: Path) -> None:
    with pytest.raises(DataError, match="no test split, only: train, val"):
        read_split(open_dataset(coco_layout), "test")


def test_f06_reference_subset_of_a_layout(coco_layout: Path) -> None:
    content = coco_dict(5)
    content["images"] = content["images"][:1]
    path = write_json(coco_layout.parent / "CocoFormatAnnos" / "instances_train2017_sample1.json", content)
    annotations, findings = read_split(open_dataset(coco_layout), "train", path)
    assert (len(annotations.images), len(annotations.annotations), findings.unlisted_annotations) == (1, 2, 6)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_f71_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(MachineError):
        make_prepared(tmp_path / "locked" / "data")


def test_f71_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    annotations = read_coco(write_json(tmp_path / "a.json", json.dumps(coco_dict())))
    with pytest.raises(MachineError):
        write_dataset(tmp_path / "data", "x", {"train": SplitContent(annotations, tmp_path)})

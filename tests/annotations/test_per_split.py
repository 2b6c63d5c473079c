from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.annotations.content import ReadOptions, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.prepared import require_same_classes
from core.annotations.readers.coco_files import is_coco, read_coco_files
from core.annotations.readers.csv_table import is_csv, read_csv
from core.annotations.readers.per_split import is_per_split, read_per_split
from core.annotations.readers.table import Format
from core.annotations.readers.voc import is_voc, read_voc
from core.annotations.readers.yolo import is_yolo, read_yolo
from core.errors import DataError, UsageError

from .conftest import make_voc, voc_xml, write_json

FORMATS = (
    Format("voc", "", is_voc, read_voc, counts_from_one=True),
    Format("coco", "", is_coco, read_coco_files),
    Format("csv", "", is_csv, read_csv, counts_from_one=True),
    Format("yolo", "", is_yolo, read_yolo),
)


def put_images(folder: Path, names: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30)).save(folder / name)


def coco_export(folder: Path, classes: list[str | dict[str, Any]], boxes_of: list[int], first_class: int = 0) -> None:
    """Write `_annotations.coco.json`: one image with a box of each class in `boxes_of` (positions in `classes`)."""
    put_images(folder, ["a.jpg"])
    categories = [
        {"id": first_class + index, **({"name": entry, "supercategory": "none"} if isinstance(entry, str) else entry)}
        for index, entry in enumerate(classes)
    ]
    content = {
        "images": [{"id": 0, "file_name": "a.jpg", "width": 40, "height": 30}],
        "annotations": [
            {"id": index, "image_id": 0, "category_id": first_class + position, "bbox": [1 + index, 2, 3, 4]}
            for index, position in enumerate(boxes_of)
        ],
        "categories": categories,
    }
    write_json(folder / "_annotations.coco.json", content)


def voc_export(folder: Path, *labels: str) -> None:
    put_images(folder, ["a.jpg"])
    (folder / "a.xml").write_text(voc_xml("a.jpg", [(label, 1, 2, 4, 6) for label in labels]))


def csv_export(folder: Path, *labels: str) -> None:
    put_images(folder, ["a.jpg"])
    rows = "".join(f"a.jpg,40,30,{label},1,2,4,6\n" for label in labels)
    (folder / "_annotations.csv").write_text("filename,width,height,class,xmin,ymin,xmax,ymax\n" + rows)


def classes_of(content: SplitContent) -> list[tuple[int, str]]:
    return [(category.id, category.name) for category in content.annotations.categories]


def labels_of(content: SplitContent) -> list[str]:
    names = dict(classes_of(content))
    return [names[annotation.category_id] for annotation in content.annotations.annotations]


def test_coco_with_other_ids_in_each_split(tmp_path: Path) -> None:
    coco_export(tmp_path / "train", ["dog", "cat"], [0, 1, 1], first_class=5)
    coco_export(tmp_path / "valid", ["cat", "emu", "dog"], [0, 1, 2])
    coco_export(tmp_path / "test", ["cat", "bee"], [1], first_class=90)
    assert is_per_split(tmp_path, FORMATS)
    source = read_per_split(tmp_path, formats=FORMATS)
    assert source.format == "coco"
    assert list(source.splits) == ["train", "val", "test"]
    for content in source.splits.values():
        assert classes_of(content) == [(5, "dog"), (6, "cat"), (7, "emu"), (8, "bee")]
    assert {split: labels_of(content) for split, content in source.splits.items()} == {
        "train": ["dog", "cat", "cat"],
        "val": ["cat", "emu", "dog"],
        "test": ["bee"],
    }
    assert source.splits["val"].annotations.annotations[1].box_xywh_px == (2, 2, 3, 4)
    assert source.splits["val"].image_root == tmp_path / "valid"
    assert source.splits["test"].findings.classes_without_instances == ("dog", "cat", "emu")
    assert source.notes == (
        "a folder for each split: train (coco), val (coco), test (coco)",
        "class ids differ between the splits: merged by name, the ids are those of train",
        "classes that train does not list, put after its own: emu, bee",
    )


def test_another_format_in_each_split(tmp_path: Path) -> None:
    voc_export(tmp_path / "train", "dog", "ant")
    csv_export(tmp_path / "val", "dog", "cat")
    coco_export(tmp_path / "test", ["cat", "ant"], [0, 1])
    source = read_per_split(tmp_path, formats=FORMATS)
    assert source.format == "per-split"
    assert classes_of(source.splits["test"]) == [(1, "ant"), (2, "dog"), (3, "cat")]
    assert [labels_of(content) for content in source.splits.values()] == [
        ["dog", "ant"],
        ["dog", "cat"],
        ["cat", "ant"],
    ]
    assert source.notes[0] == "a folder for each split: train (voc), val (csv), test (coco)"
    first = source.splits["train"].annotations.categories
    for content in source.splits.values():
        require_same_classes(first, content.annotations.categories, "train", "other")


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_names_of_the_val_folder(tmp_path: Path, name: str) -> None:
    voc_export(tmp_path / name, "dog")
    assert is_per_split(tmp_path, FORMATS)
    assert list(read_per_split(tmp_path, formats=FORMATS).splits) == ["val"]


def test_split_folders_of_pascal_vocs_own_form(tmp_path: Path) -> None:
    make_voc(tmp_path / "train")
    make_voc(tmp_path / "valid", {"val": ["a0", "a1"]})
    source = read_per_split(tmp_path, formats=FORMATS)
    assert {split: len(content.annotations.images) for split, content in source.splits.items()} == {
        "train": 6,
        "val": 2,
    }


def group(name: str, over: str = "none") -> dict[str, Any]:
    return {"name": name, "supercategory": over}


def test_f16_name_of_a_group_of_classes_is_no_class(tmp_path: Path) -> None:
    classes: list[str | dict[str, Any]] = [group("animals"), group("cat", "animals"), group("dog", "animals")]
    coco_export(tmp_path / "train", classes, [1, 2])
    csv_export(tmp_path / "valid", "dog")
    source = read_per_split(tmp_path, formats=FORMATS)
    assert classes_of(source.splits["train"]) == classes_of(source.splits["val"]) == [(1, "cat"), (2, "dog")]
    assert labels_of(source.splits["train"]) == ["cat", "dog"]
    assert "the name of a group, of which no box is, left out of the classes: animals" in source.notes


@pytest.mark.parametrize(
    ("classes", "boxes"),
    [
        ([group("animals"), group("cat", "animals")], [0, 1]),
        ([group("animals"), group("cat")], [1]),
        ([group("animals", "beings"), group("cat", "animals")], [1]),
    ],
    ids=["has-boxes", "is-over-nothing", "is-below-another"],
)
def test_f16_classes_that_stay(tmp_path: Path, classes: list[str | dict[str, Any]], boxes: list[int]) -> None:
    coco_export(tmp_path / "train", classes, boxes)
    assert classes_of(read_per_split(tmp_path, formats=FORMATS).splits["train"]) == [(0, "animals"), (1, "cat")]


def test_f16_group_with_boxes_in_another_split_stays(tmp_path: Path) -> None:
    coco_export(tmp_path / "train", [group("animals"), group("cat", "animals")], [1])
    csv_export(tmp_path / "valid", "animals")
    assert classes_of(read_per_split(tmp_path, formats=FORMATS).splits["train"]) == [(0, "animals"), (1, "cat")]


def test_edges_that_count_from_one(tmp_path: Path) -> None:
    voc_export(tmp_path / "train", "dog")
    coco_export(tmp_path / "valid", ["dog"], [0])
    source = read_per_split(tmp_path, ReadOptions(one_based=True), formats=FORMATS)
    boxes = [content.annotations.annotations[0].box_xywh_px for content in source.splits.values()]
    assert boxes == [(0, 1, 3, 4), (1, 2, 3, 4)]
    (tmp_path / "train" / "a.xml").unlink()
    with pytest.raises(UsageError, match="coco do not count from 1"):
        read_per_split(tmp_path, ReadOptions(one_based=True), formats=FORMATS)


def test_pictures_without_annotations_are_left_out_and_said(tmp_path: Path) -> None:
    voc_export(tmp_path / "train", "dog")
    put_images(tmp_path / "test", ["a.jpg"])
    assert is_per_split(tmp_path, FORMATS)
    source = read_per_split(tmp_path, formats=FORMATS)
    assert list(source.splits) == ["train"]
    assert source.notes[0] == "test holds no annotations, left out"


def test_f03_annotations_in_no_known_format(tmp_path: Path) -> None:
    voc_export(tmp_path / "train", "dog")
    put_images(tmp_path / "valid", ["a.jpg"])
    (tmp_path / "valid" / "labels.parquet").write_bytes(b"?")
    with pytest.raises(DataError, match="format of the val annotations") as raised:
        read_per_split(tmp_path, formats=FORMATS)
    assert raised.value.code == "F03"
    assert raised.value.where == str(tmp_path / "valid")
    assert "valid/labels.parquet" in str(raised.value.hint)


def test_f03_two_folders_for_one_split(tmp_path: Path) -> None:
    voc_export(tmp_path / "val", "dog")
    voc_export(tmp_path / "valid", "dog")
    with pytest.raises(DataError, match="val and valid are both the val split"):
        read_per_split(tmp_path, formats=FORMATS)


def test_f03_split_with_splits_of_its_own(tmp_path: Path) -> None:
    make_voc(tmp_path / "train", {"train": ["a0"], "val": ["a1"]})
    with pytest.raises(DataError, match="splits of its own: train, val") as raised:
        read_per_split(tmp_path, formats=FORMATS)
    assert raised.value.where == str(tmp_path / "train")


def test_faults_of_a_split_go_through_the_log(tmp_path: Path) -> None:
    voc_export(tmp_path / "train", "dog")
    csv_export(tmp_path / "valid", "dog")
    with (tmp_path / "valid" / "_annotations.csv").open("a") as stream:
        stream.write("a.jpg,40,30,dog,9,2,4,6\n")
    with pytest.raises(DataError, match="negative") as raised:
        read_per_split(tmp_path, formats=FORMATS)
    assert raised.value.where == f"{tmp_path / 'valid' / '_annotations.csv'}:3"
    log = FaultLog(drops=True)
    read_per_split(tmp_path, log=log, formats=FORMATS)
    assert [(fault.code, fault.count) for fault in log.faults] == [("F08", 1)]


def test_what_is_no_folder_per_split(tmp_path: Path) -> None:
    assert not is_per_split(tmp_path / "missing", FORMATS)
    put_images(tmp_path / "train", ["a.jpg"])
    (tmp_path / "train" / "leftImg8bit").mkdir()  # half a layout
    (tmp_path / "val").write_text("a file")
    assert not is_per_split(tmp_path, FORMATS)
    with pytest.raises(DataError, match="no folder train, valid or test"):
        read_per_split(tmp_path / "train", formats=FORMATS)


def yolo_export(folder: Path, *names: str) -> None:
    """Write the form that Roboflow calls Darknet: one image with a box of each class."""
    put_images(folder, ["a.jpg"])
    (folder / "a.txt").write_text("".join(f"{index} 0.5 0.5 0.25 0.2\n" for index in range(len(names) or 1)))
    if names:
        (folder / "_darknet.labels").write_text("\n".join(names))


def test_yolo_beside_another_format(tmp_path: Path) -> None:
    yolo_export(tmp_path / "train", "dog", "cat")
    csv_export(tmp_path / "valid", "cat")
    assert is_per_split(tmp_path, FORMATS)
    source = read_per_split(tmp_path, formats=FORMATS)
    assert source.format == "per-split"
    assert classes_of(source.splits["val"]) == [(0, "dog"), (1, "cat")]
    assert [labels_of(content) for content in source.splits.values()] == [["dog", "cat"], ["cat"]]
    assert source.splits["train"].annotations.annotations[0].box_xywh_px == pytest.approx((15, 12, 10, 6))


def test_yolo_in_all_splits_is_left_to_its_own_reader(tmp_path: Path) -> None:
    yolo_export(tmp_path / "train", "dog")
    yolo_export(tmp_path / "valid", "dog")
    assert not is_per_split(tmp_path, FORMATS)


def test_f16_no_id_is_left(tmp_path: Path) -> None:
    coco_export(tmp_path / "train", ["dog"], [0], first_class=2**63 - 1)
    csv_export(tmp_path / "valid", "dog")
    assert classes_of(read_per_split(tmp_path, formats=FORMATS).splits["val"]) == [(2**63 - 1, "dog")]
    csv_export(tmp_path / "valid", "emu")
    with pytest.raises(DataError, match="'emu' of another split cannot get the id after 9223372036854775807") as raised:
        read_per_split(tmp_path, formats=FORMATS)
    assert raised.value.code == "F16"


def test_f28_numbers_and_names_are_not_mixed(tmp_path: Path) -> None:
    csv_export(tmp_path / "train", "cat")
    yolo_export(tmp_path / "valid")
    with pytest.raises(DataError, match="the val annotations number their classes") as raised:
        read_per_split(tmp_path, formats=FORMATS)
    assert raised.value.code == "F28"
    assert raised.value.where == str(tmp_path / "valid")

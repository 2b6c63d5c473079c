"""F01 to F18 and F28, as their users meet them: the command is typed, its message read, and no file may change by it.

Every kind of each fault is tested beside the code that finds it, in tests/annotations/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.annotations.faults import TITLES
from core.annotations.prepared import open_dataset, read_split
from core.errors import DataError
from tests.annotations.conftest import CocoDict, coco_dict, make_voc, voc_xml, write_json
from tests.faults.desk import Desk, cut


def delete(section: str, *rows: int) -> Callable[[CocoDict], None]:
    def change(content: CocoDict) -> None:
        content[section] = [entry for row, entry in enumerate(content[section]) if row not in rows]

    return change


def test_f01_json_cut_off(desk: Desk) -> None:
    file = desk.annotation_file()
    file.write_bytes(file.read_bytes()[:200])
    error = desk.refuse_source("F01")
    assert re.fullmatch(rf"{re.escape(str(file.relative_to(desk.folder)))}:1:\d+", str(error.where))
    assert "cut off" in str(error.hint)


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_f02_section_missing_or_of_another_type(desk: Desk, section: str) -> None:
    desk.edit(lambda content: content.pop(section))
    assert section in desk.refuse_source("F02").message
    desk.put(section, {})
    error = desk.refuse_source("F02")
    assert str(error.where).endswith(f": {section}")
    assert "must be a list" in error.message


@pytest.mark.parametrize(
    ("content", "guess"),
    [
        ([{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}], "a results file"),
        ({"images": [], "annotations": [{"segments_info": []}], "categories": []}, "a panoptic file"),
        ("<annotation></annotation>", "XML"),
    ],
    ids=["results", "panoptic", "voc"],
)
def test_f03_file_of_another_format(desk: Desk, content: Any, guess: str) -> None:
    write_json(desk.annotation_file(), content)
    assert f"looks like {guess}" in desk.refuse_source("F03").message


def test_f04_image_id_used_twice(desk: Desk) -> None:
    desk.put("images", 3, "id", 2)
    error = desk.refuse_source("F04")
    for words in ("images[3]", "images[1]", "'004.png'", "'002.png'"):
        assert words in str(error)
    desk.refuse_source("F04", "--on-invalid", "drop")  # nobody can tell whose annotations they are


def test_f05_annotation_id_used_twice(desk: Desk) -> None:
    desk.put("annotations", 4, "id", 101)
    error = desk.refuse_source("F05")
    for words in ("annotations[4]", "annotations[1]", "101"):
        assert words in str(error)


def test_f06_annotation_of_an_image_that_is_not_listed(desk: Desk) -> None:
    desk.edit(delete("images", 0))
    error = desk.refuse_source("F06")
    for words in ("annotations[0].image_id", "2 such", "the image id 1 "):
        assert words in str(error)


def test_f06_subset_in_the_style_of_the_reference(desk: Desk) -> None:
    desk.edit(delete("images", 0, 1, 2))
    assert "train: annotations of images that the file does not list, left out: 6" in desk.accept(
        "prepare-data", "coco"
    )


def test_f07_unknown_category(desk: Desk) -> None:
    for row in range(1, 8):
        desk.put("annotations", row, "category_id", 50)
    error = desk.refuse_source("F07")
    assert "the category id 50 " in error.message
    assert "7 such" in error.message
    assert error.message.count(".category_id") == 5
    assert isinstance(error, DataError)
    assert len(error.places) == 7


def test_f08_negative_size(desk: Desk) -> None:
    desk.put("annotations", 2, "bbox", [5, 4, -3, 6])
    error = desk.refuse_source("F08")
    assert str(error.where).endswith("annotations[2].bbox")
    assert "[5, 4, -3, 6]" in error.message


def test_f08_zero_size(desk: Desk) -> None:
    desk.put("annotations", 2, "bbox", [5, 4, 3, 0])
    desk.refuse_source("F08", "--strict")
    assert "boxes without width or height, dropped: 1" in desk.accept("prepare-data", "coco")


@pytest.mark.parametrize(
    "box", [[1, 2, float("nan"), 4], [1, 2, float("inf"), 4], [1, 2, "3", 4], [1, None, 3, 4], [1, 2, 3], [1] * 5],
    ids=str,
)  # fmt: skip
def test_f09_box_that_is_not_four_finite_numbers(desk: Desk, box: list[Any]) -> None:
    desk.put("annotations", 2, "bbox", box)
    error = desk.refuse_source("F09")
    assert str(error.where).endswith("annotations[2].bbox")
    assert "four" in error.message


def test_f10_box_wholly_outside(desk: Desk) -> None:
    desk.put("annotations", 2, "bbox", [40, 4, 5, 6])
    error = desk.refuse_source("F10")
    assert str(error.where).endswith("annotations[2].bbox")
    assert "outside its image of 40 x 30" in error.message


def test_f10_box_partly_outside(desk: Desk) -> None:
    desk.put("annotations", 2, "bbox", [38, 4, 5, 6])
    said = desk.accept("prepare-data", "coco")
    assert "train: boxes that reach over an image's edge, clipped when they are trained on: 1" in said


XYXY = [[5, 5, 35, 25], [20, 12, 39, 29], [22, 3, 40, 28], [2, 2, 12, 9], [18, 15, 38, 30], [25, 20, 33, 27]]


@pytest.mark.parametrize(
    ("boxes", "guess", "name", "first_box"),
    [
        (XYXY + XYXY[:2], "like edges x1, y1, x2, y2", "xyxy", [5, 5, 30, 20]),
        ([[0.1, 0.2, 0.5, 0.25]] * 8, "normalised to 0 ... 1", "xywh-norm", [4, 6, 20, 7.5]),
        ([[0.5, 0.5, 0.9, 0.9]] * 8, "edges x1, y1, x2, y2, normalised", "xyxy-norm", [20, 15, 16, 12]),
    ],
)
def test_f11_boxes_in_another_format(
    desk: Desk, boxes: list[Any], guess: str, name: str, first_box: list[float]
) -> None:
    for row, box in enumerate(boxes):
        desk.put("annotations", row, "bbox", box)
    desk.edit(lambda content: content.update(annotations=[]), "val")
    error = desk.refuse_source("F11")
    assert guess in error.message
    desk.refuse_source("F11", "--on-invalid", "drop")
    assert f"--boxes {name}" in str(error.hint)
    desk.accept("prepare-data", "coco", "--boxes", name)
    written = json.loads((desk.folder / "data" / "annotations" / "train.json").read_text())
    assert written["annotations"][0]["bbox"] == pytest.approx(first_box)
    assert written["annotations"][0]["area"] == pytest.approx(first_box[2] * first_box[3])


def test_f11_fractions_in_pascal_voc(desk: Desk) -> None:
    folder = make_voc(desk.folder / "voc")
    for xml in (folder / "Annotations").iterdir():
        xml.write_text(voc_xml("x", [("ant", 0.1, 0.2, 0.6, 0.75)]))
    error = desk.refuse("prepare-data", "voc", code="F11")
    assert "normalised" in error.message


@pytest.mark.parametrize("flag", [["--boxes", "xyxy"], ["--allow-unlisted"]])
def test_f76_flags_of_coco_files_mean_nothing_to_others(desk: Desk, flag: list[str]) -> None:
    make_voc(desk.folder / "voc")
    assert desk.refuse("prepare-data", "voc", *flag, exit_code=2).where == flag[0]


@pytest.mark.parametrize(
    "flag", [["--val", "0.5"], ["--folds", "3"], ["--export", "voc"], ["--dry-run"], ["--on-invalid", "drop"]]
)
def test_f76_a_check_makes_nothing(desk: Desk, flag: list[str]) -> None:
    assert desk.refuse("prepare-data", "coco", "--check", *flag, exit_code=2).where == flag[0]
    assert desk.refuse("prepare-data", "coco", "--pictures", "here", exit_code=2).where == "--pictures"


def test_f04_image_listed_under_two_ids(desk: Desk) -> None:
    desk.put("images", 3, "file_name", "002.png")
    error = desk.refuse_source("F04")
    assert "002.png" in error.message
    assert "images[1]" in error.message
    counts, written = desk.drop()
    assert counts == {"F04": 1}
    assert [image["file_name"] for image in written["images"]] == ["001.png", "002.png", "003.png", "005.png"]
    assert {annotation["image_id"] for annotation in written["annotations"]} == {1, 2, 3}


def test_f04_image_id_of_one_that_cannot_be_used(desk: Desk) -> None:
    desk.put("images", 3, "id", 2)
    desk.put("images", 3, "width", -1)
    desk.refuse_source("F04", "--on-invalid", "drop")


def test_f28_check_shows_the_classes_of_each_split(desk: Desk) -> None:
    desk.edit(lambda content: content["categories"].append({"id": 9, "name": "emu"}), "val")
    code, out, _ = desk.run("prepare-data", "coco", "--check")
    assert code == 3
    assert "F28" in out
    assert any(
        line.split()[1::2] == ["emu", "-", "0"] for line in out.splitlines() if "emu" in line and "F28" not in line
    )


def test_f06_check_leaves_out_unlisted_annotations_if_told(desk: Desk) -> None:
    desk.edit(delete("images", 0))
    assert desk.run("prepare-data", "coco", "--check")[0] == 3
    assert desk.run("prepare-data", "coco", "--check", "--allow-unlisted")[0] == 0


def test_f12_image_without_objects(desk: Desk) -> None:
    said = desk.accept("prepare-data", "coco")
    assert "train: images without objects, used as negatives: 1" in said
    annotations, _ = read_split(open_dataset(desk.folder / "data"), "train")
    assert [len(found) for found in annotations.by_image().values()] == [2, 2, 2, 2, 0]


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        (("categories", 1, "name"), "cat", "F17"),
        (("categories", 1, "name"), " ", "F17"),
        (("categories", 1, "name"), None, "F17"),
        (("categories", 1, "id"), 3, "F16"),
        (("categories", 1, "id"), "7", "F16"),
    ],
    ids=["F17-twice", "F17-empty", "F17-null", "F16-twice", "F16-text"],
)
def test_f17_class_without_a_name_or_id_of_its_own(desk: Desk, path: tuple[Any, ...], value: Any, code: str) -> None:
    desk.put(*path, value)
    assert "categories[1]" in str(desk.refuse_source(code).where)


def test_f18_class_without_instances(desk: Desk) -> None:
    for split in ("train", "val"):
        desk.edit(lambda content: content["categories"].append({"id": 9, "name": "emu"}), split)
    assert "train: classes without instances: emu" in desk.accept("prepare-data", "coco")


def test_f28_splits_with_other_classes(desk: Desk) -> None:
    desk.edit(lambda content: content["categories"].append({"id": 9, "name": "emu"}), "val")
    assert "only it has 'emu' (id 9)" in desk.refuse_source("F28").message


# What is left when faults are dropped


def unlist_classes(content: CocoDict) -> None:
    for row in (1, 6):
        content["annotations"][row]["category_id"] = 50


def part_of_boxes(**values: Any) -> Callable[[CocoDict], None]:
    return lambda content: content["annotations"][2].update(values)


def part_of_images(**values: Any) -> Callable[[CocoDict], None]:
    return lambda content: content["images"][1].update(values)


@pytest.mark.parametrize(
    ("change", "faults", "boxes", "images"),
    [
        pytest.param(part_of_images(width=None), {"F02": 1}, [2, 3], [2], id="F02-image"),
        pytest.param(part_of_boxes(id="x"), {"F02": 1}, [2], [], id="F02-annotation"),
        pytest.param(part_of_boxes(id=101), {"F05": 1}, [2], [], id="F05-the-later-one"),
        pytest.param(delete("images", 0), {"F06": 2}, [0, 1], [1], id="F06"),
        pytest.param(unlist_classes, {"F07": 2}, [1, 6], [], id="F07"),
        pytest.param(part_of_boxes(bbox=[1, 2, -3, 4]), {"F08": 1}, [2], [], id="F08"),
        pytest.param(part_of_boxes(bbox=[1, 2, float("nan"), 4]), {"F09": 1}, [2], [], id="F09"),
        pytest.param(part_of_boxes(bbox=[50, 2, 3, 4]), {"F10": 1}, [2], [], id="F10"),
        pytest.param(part_of_boxes(iscrowd=2), {"F15": 1}, [2], [], id="F15"),
        pytest.param(part_of_images(width=10**9), {"F26": 1}, [2, 3], [2], id="F26"),
        pytest.param(part_of_images(file_name="../x.png"), {"F31": 1}, [2, 3], [2], id="F31"),
    ],
)
def test_dropped_entries_go_with_all_that_is_theirs(
    desk: Desk, change: Callable[[CocoDict], None], faults: dict[str, int], boxes: list[int], images: list[int]
) -> None:
    """`boxes`: rows of annotations that must be gone; `images`: ids of images."""
    whole = coco_dict(5)
    desk.edit(change)
    found, written = desk.drop()
    assert found == faults
    assert [image["id"] for image in written["images"]] == [ident for ident in range(1, 6) if ident not in images]
    assert [(entry["image_id"], entry["category_id"]) for entry in written["annotations"]] == [
        (entry["image_id"], entry["category_id"]) for row, entry in enumerate(whole["annotations"]) if row not in boxes
    ]
    read_split(open_dataset(desk.folder / "data"), "train")


def test_dropped_images_go_with_their_boxes(desk: Desk) -> None:
    desk.image("001.png").unlink()
    cut(desk.image("002.png"))
    desk.image("003.png").write_bytes(b"")
    found, written = desk.drop()
    assert found == {"F19": 1, "F20": 1, "F21": 1}
    assert [image["id"] for image in written["images"]] == [4, 5]
    assert {entry["image_id"] for entry in written["annotations"]} == {4}
    assert "left out, image that is missing (F19): 1" in desk.accept("prepare-data", "coco", "--on-invalid", "drop")


def test_dropped_voc_files_and_objects(desk: Desk) -> None:
    root = make_voc(desk.folder / "voc")
    cut(root / "Annotations" / "a2.xml")
    path = root / "Annotations" / "a3.xml"
    path.write_text(path.read_text().replace("<name>ant</name>", "<name></name>", 1))
    said = desk.accept("prepare-data", "voc", "--on-invalid", "drop", "--out", "from-voc")
    assert "(F01): 1" in said
    assert "(F17): 1" in said
    dataset = open_dataset(desk.folder / "from-voc")
    images = [image.file_name for split in ("train", "val") for image in read_split(dataset, split)[0].images]
    assert sorted(images) == ["a0.jpg", "a1.jpg", "a3.jpg", "a4.jpg", "a5.jpg"]


def test_nothing_left_is_an_error(desk: Desk) -> None:
    for path in desk.image().parent.iterdir():
        path.write_bytes(b"")
    desk.refuse_source("F29", "--on-invalid", "drop")


ROOT = Path(__file__).resolve().parents[2]


def test_every_code_that_can_be_printed_is_explained() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| (F\d\d) \|", text, re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert set(TITLES) <= set(explained)
    used = {
        code
        for path in [*(ROOT / "core").rglob("*.py"), *(ROOT / "dedetr_cli").rglob("*.py")]
        for code in re.findall(r'"(F\d\d)"', path.read_text(encoding="utf-8"))
    }
    assert used <= set(explained)

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.annotations.checks.advice import Advice, TrainingSettings
from core.annotations.checks.report import CheckReport, check_source
from core.annotations.content import ReadOptions
from core.annotations.demo import draw_demo_splits
from core.annotations.faults import Fault
from core.annotations.prepare import prepare
from core.annotations.prepared import write_dataset
from core.errors import UsageError
from tests.annotations.conftest import all_bytes, coco_dict, make_coco_layout, make_voc, write_images, write_json

SETTINGS = TrainingSettings("some-detr", 100, 2, None, 800, 1333, 4, 50)


def _codes(report: CheckReport) -> dict[tuple[str, str], int]:
    return {(fault.code, fault.severity): fault.count for fault in report.faults}


def _fault(report: CheckReport, code: str) -> Fault:
    return next(fault for fault in report.faults if fault.code == code)


def _topics(report: CheckReport) -> dict[str, Advice]:
    return {one.topic: one for one in reversed(report.advice)}


def _rewrite(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def test_a_sound_source(coco_layout: Path) -> None:
    before = all_bytes(coco_layout)
    report = check_source(coco_layout)
    assert (report.path, report.format, report.num_errors, report.num_warnings) == (coco_layout, "coco", 0, 0)
    assert _codes(report) == {("F12", "note"): 2}
    assert {split: one.num_boxes for split, one in report.statistics.items()} == {"train": 8, "val": 4}
    assert report.near_duplicates == ()
    assert all_bytes(coco_layout) == before


def test_all_faults_come_in_one_go(coco_layout: Path) -> None:
    content = coco_dict(5)
    images, annotations = content["images"], content["annotations"]
    images[0]["width"] = 41
    images[1]["file_name"] = "../outside.png"
    annotations[4]["bbox"] = [1, 2, "three", 4]
    annotations[5]["bbox"] = [5, 5, -3, 4]
    annotations[6]["category_id"] = 99
    annotations[7]["bbox"] = [1, 2, 0, 4]
    annotations.append({**annotations[7], "id": 5000, "bbox": [300, 2, 4, 4]})
    annotations.append({**annotations[7], "bbox": [3, 2, 4, 4]})
    write_json(coco_layout / "annotations" / "instances_train2017.json", content)
    (coco_layout / "train2017" / "005.png").write_bytes(b"")
    (coco_layout / "val2017" / "500.png").unlink()
    (coco_layout / "val2017" / "501.png").write_bytes(b"%PDF-1.4")
    report = check_source(coco_layout)
    assert [fault.severity for fault in report.faults] == ["error"] * 10 + ["warning", "note"]
    assert _codes(report) == {
        ("F05", "error"): 1,
        ("F07", "error"): 1,
        ("F08", "error"): 1,
        ("F09", "error"): 1,
        ("F10", "error"): 1,
        ("F19", "error"): 1,
        ("F21", "error"): 1,
        ("F25", "error"): 1,
        ("F31", "error"): 1,
        ("F36", "error"): 1,
        ("F08", "warning"): 1,
        ("F12", "note"): 4,
    }
    assert (report.num_errors, report.num_warnings) == (10, 1)
    assert _fault(report, "F25").where == str(coco_layout / "train2017" / "001.png")
    # Statistics are of what is left.
    assert report.statistics["train"].num_images == 2
    assert report.statistics["val"].num_images == 1


def test_a_file_that_cannot_be_read_costs_its_split_alone(coco_layout: Path) -> None:
    (coco_layout / "annotations" / "instances_val2017.json").write_text('{"images": [')
    report = check_source(coco_layout)
    assert _codes(report) == {("F01", "error"): 1, ("F12", "note"): 1}
    assert "instances_val2017.json:1:" in str(_fault(report, "F01").where)
    assert list(report.statistics) == ["train"]
    assert report.format == "coco"


def test_several_files_that_cannot_be_read(coco_layout: Path) -> None:
    for split in ("train", "val"):
        (coco_layout / "annotations" / f"instances_{split}2017.json").write_text("[]")
    report = check_source(coco_layout)
    assert _codes(report) == {("F02", "error"): 2}
    assert report.statistics == {}
    assert report.advice == ()


def test_splits_with_different_classes(coco_layout: Path) -> None:
    _rewrite(
        coco_layout / "annotations" / "instances_val2017.json",
        categories=[{"id": 3, "name": "cat"}, {"id": 7, "name": "wolf"}],
    )
    report = check_source(coco_layout)
    assert ("F28", "error") in _codes(report)
    assert "'wolf'" in _fault(report, "F28").message
    assert set(report.statistics) == {"train", "val"}


@pytest.mark.parametrize("name", ["x" * 300, "x\0y", "\ud800"])
@pytest.mark.parametrize("format_name", [None, "coco", "prepared"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str, format_name: str | None) -> None:
    assert _codes(check_source(tmp_path / name, format_name)) == {("F19", "error"): 1}


@pytest.mark.parametrize("name", ["nothing", "readme.txt", "folder"])
def test_what_is_no_source(tmp_path: Path, name: str) -> None:
    (tmp_path / "readme.txt").write_text("no data")
    (tmp_path / "folder").mkdir()
    report = check_source(tmp_path / name)
    assert _codes(report) == {({"nothing": "F19"}.get(name, "F03"), "error"): 1}
    assert report.format is None


def test_usage_is_not_a_fault_of_the_data(coco_layout: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        check_source(coco_layout, "cocoa")
    with pytest.raises(UsageError):
        check_source(coco_layout, options=ReadOptions(one_based=True))
    prepare(coco_layout, tmp_path / "data")
    with pytest.raises(UsageError):
        check_source(tmp_path / "data", options=ReadOptions(one_based=True))


def test_no_box_to_learn_from(coco_layout: Path) -> None:
    content = coco_dict(5)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    write_json(coco_layout / "annotations" / "instances_train2017.json", content)
    assert _codes(check_source(coco_layout))["F13", "error"] == 1


def test_voc(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc", {"train": ["a0", "a1", "a2"], "val": ["a3", "a4"]})
    (tmp_path / "voc" / "Annotations" / "a2.xml").write_text("<annotation>")
    (tmp_path / "voc" / "JPEGImages" / "a4.jpg").write_bytes(b"")
    report = check_source(tmp_path / "voc")
    assert report.format == "voc"
    assert _codes(report) == {("F01", "error"): 1, ("F21", "error"): 1, ("F18", "warning"): 1}
    assert _fault(report, "F18").places == ("val: zebra",)
    assert {split: one.num_images for split, one in report.statistics.items()} == {"train": 2, "val": 1}
    assert any("in no list" in note for note in report.notes)


def test_a_prepared_data_set(coco_layout: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare(coco_layout, data)
    assert check_source(data).num_errors == 0
    assert check_source(data).format == "prepared"
    _rewrite(data / "annotations" / "val.json", categories=[{"id": 3, "name": "cat"}])
    (data / "annotations" / "train.json").write_bytes(b"\0")
    report = check_source(data)
    assert {code for code, severity in _codes(report) if severity == "error"} == {"F01", "F07", "F28"}
    (data / "dataset.yaml").write_text("- no\n- mapping\n")
    report = check_source(data)
    assert report.num_errors == 1
    assert report.format is None


def _leaky(root: Path) -> Path:
    """A data set in whose val split one picture is that of train as a file, and one looks like it."""
    splits = draw_demo_splits(root / "images", seed=1, num_train=6, num_val=6)
    images = root / "images"
    (images / "val" / "0007.png").write_bytes((images / "train" / "0001.png").read_bytes())
    with Image.open(images / "train" / "0002.png") as image:
        image.resize((image.width // 2, image.height // 2)).save(images / "val" / "0008.png")
    records = []
    for record in splits["val"].annotations.images:
        with Image.open(images / record.file_name) as image:
            records.append(dataclasses.replace(record, width=image.width, height=image.height))
    val = dataclasses.replace(splits["val"].annotations, images=tuple(records), annotations=())
    splits["val"] = dataclasses.replace(splits["val"], annotations=val)
    write_dataset(root, "leaky", splits)
    return root


def test_pictures_in_two_splits(tmp_path: Path) -> None:
    root = _leaky(tmp_path / "data")
    report = check_source(root)
    assert _codes(report)["F27", "warning"] == 2
    equal, alike = _fault(report, "F27").places
    assert equal == "train/train/0001.png = val/val/0007.png"
    assert alike.startswith("train/train/0002.png ~ val/val/0008.png (")
    assert "1 as equal files, 1 that look almost the same" in _fault(report, "F27").message
    assert [pair.second for pair in report.near_duplicates] == [("val", "val/0008.png")]
    assert "2 of 6 (33 %)" in _topics(report)["leakage"].text
    strict = check_source(root, strict=True)
    assert _codes(strict)["F27", "error"] == 2
    assert strict.num_errors == 2
    quick = check_source(root, near_duplicates=False)
    assert _codes(quick)["F27", "warning"] == 1


def test_look_alikes_of_a_source_without_lists_are_advice(tmp_path: Path) -> None:
    draw_demo_splits(tmp_path / "drawn", seed=2, num_train=4, num_val=1)
    voc = make_voc(tmp_path / "voc", num_images=3)
    for name, quality in (("a0", 95), ("a1", 60)):
        with Image.open(tmp_path / "drawn" / "train" / "0001.png") as image:
            image.resize((40, 30)).convert("RGB").save(voc / "JPEGImages" / f"{name}.jpg", quality=quality)
    report = check_source(voc, strict=True)
    assert report.num_errors == 0
    advice = _topics(report)["leakage"]
    assert "1 of 3 (33 %)" in advice.text
    assert advice.flag == "--group"


def test_a_file_twice_in_one_split_is_noted(coco_layout: Path) -> None:
    folder = coco_layout / "train2017"
    (folder / "002.png").write_bytes((folder / "001.png").read_bytes())
    report = check_source(coco_layout, strict=True)
    assert report.num_errors == 0
    assert report.notes == ("train: pictures whose file equals another of the split: 1",)
    assert "leakage" not in _topics(report)


def test_boxes_without_size_are_refused_when_strict(coco_layout: Path) -> None:
    content = coco_dict(5)
    content["annotations"][0]["bbox"] = [1, 2, 0, 4]
    write_json(coco_layout / "annotations" / "instances_train2017.json", content)
    assert _codes(check_source(coco_layout))["F08", "warning"] == 1
    assert _codes(check_source(coco_layout, strict=True))["F08", "error"] == 1


def test_labels_beyond_the_queries(coco_layout: Path) -> None:
    settings = dataclasses.replace(SETTINGS, num_queries=3, batch_size=99)
    report = check_source(coco_layout, settings=settings)
    fault = _fault(report, "F30")
    assert (fault.severity, fault.count, fault.places[0]) == ("warning", 4, "001.png")
    assert fault.hint == "train with --num-queries 4"
    assert _topics(report)["queries"].flag == "--num-queries 4"
    assert _codes(report)["F29", "note"] == 1
    fitting = check_source(coco_layout, settings=dataclasses.replace(SETTINGS, num_queries=4))
    assert not {"F29", "F30"} & {fault.code for fault in fitting.faults}
    assert "queries" not in _topics(fitting)


def test_progress_rises_to_its_end(coco_layout: Path) -> None:
    (coco_layout / "val2017" / "500.png").unlink()
    for near_duplicates, total in ((True, 16), (False, 8)):
        seen: list[tuple[int, int]] = []
        check_source(
            coco_layout, near_duplicates=near_duplicates, on_images=lambda done, of, seen=seen: seen.append((done, of))
        )
        assert {of for _, of in seen} == {total}
        assert all(before < after for (before, _), (after, _) in itertools.pairwise(seen))
        assert seen[-1][0] == total


def test_all_of_it_becomes_json(tmp_path: Path) -> None:
    report = check_source(_leaky(tmp_path / "data"), settings=SETTINGS)
    written = json.loads(json.dumps(dataclasses.asdict(report), default=str, allow_nan=False))
    assert set(written["statistics"]) == {"train", "val"}
    assert written["near_duplicates"][0]["second"] == ["val", "val/0008.png"]


def _make(root: Path, boxes: dict[str, list[tuple[int, int]]], size: tuple[int, int] = (400, 300)) -> Path:
    """A COCO source: per split and image the number of boxes of class 3, each of 20 pixels, and of class 7, of 90."""
    for split, images in boxes.items():
        content = coco_dict(len(images) + 1, first_id={"train": 1, "val": 500}[split], size=size)
        content["annotations"] = []
        for image, counts in zip(content["images"], images, strict=False):
            for category_id, num, side in zip((3, 7), counts, (20, 90), strict=True):
                for _ in range(num):
                    box = {"bbox": [5, 5, side, side], "image_id": image["id"], "category_id": category_id}
                    content["annotations"].append({**box, "id": len(content["annotations"])})
        write_json(root / "annotations" / f"instances_{split}2017.json", content)
        write_images(root / f"{split}2017", content)
    return root


def test_advice_on_small_boxes(tmp_path: Path) -> None:
    source = _make(tmp_path, {"train": [(12, 30)]})
    # The images keep their size: 20 pixels are less than a step of the encoder, half of the boxes are larger though.
    small = _topics(check_source(source, settings=dataclasses.replace(SETTINGS, short_side=300, max_long_side=500)))
    assert small["input size"].flag == "--short-side 480 --max-long-side 800"
    assert "'cat'" in small["input size"].text
    assert "median 20 px" in small["input size"].text
    assert "input size" not in _topics(check_source(source, settings=dataclasses.replace(SETTINGS, short_side=500)))
    tiny = _topics(check_source(source, settings=dataclasses.replace(SETTINGS, short_side=100, max_long_side=100)))
    assert tiny["input size"].flag == "--short-side 640 --max-long-side 640"


def test_advice_on_images_enlarged_without_need(tmp_path: Path) -> None:
    source = _make(tmp_path, {"train": [(0, 30)]})
    large = _topics(check_source(source, settings=dataclasses.replace(SETTINGS, short_side=800, max_long_side=1000)))
    assert large["input size"].flag == "--short-side 320 --max-long-side 400"
    assert "16 % of the pixels" in large["input size"].text
    assert "input size" not in _topics(check_source(source, settings=dataclasses.replace(SETTINGS, short_side=600)))


def test_advice_on_repeats(tmp_path: Path) -> None:
    source = _make(tmp_path, {"train": [(0, 1)] * 9})
    texts = {one.flag: one.text for one in check_source(source, settings=SETTINGS).advice}
    # 10 images in batches of 4 are 2 steps an epoch, 100 in all; the paper's shortest training has 147 * 50.
    assert "100 steps" in texts["--sample-repeat 74"]
    assert "--repeat-label 2 --nms" not in texts
    once = dataclasses.replace(SETTINGS, repeat_time=1, epochs=4000)
    assert [one.flag for one in check_source(source, settings=once).advice if one.topic == "repeat factor"] == [
        "--repeat-label 2 --nms"
    ]
    by_ratio = dataclasses.replace(once, repeat_ratio=0.5)
    assert "repeat factor" not in _topics(check_source(source, settings=by_ratio))


def test_advice_on_classes_and_val(tmp_path: Path) -> None:
    source = _make(tmp_path, {"train": [(1, 60), (1, 60)], "val": [(0, 16)]})
    report = check_source(source)
    texts = [one.text for one in report.advice]
    assert any(text.startswith("val has 16 boxes in 2 images") and "±0.12" in text for text in texts)
    assert any("fewer than 50 boxes in val" in text and "'dog'" in text for text in texts)
    assert any("fewer than 10 boxes in train" in text and "'cat'" in text for text in texts)
    assert any("train without a box in val" in text and "'cat'" in text for text in texts)
    assert _topics(report)["imbalance"].text.startswith("'dog' has 120 boxes in train, 'cat' 2")
    assert "empty images" not in _topics(report)  # a third, not more
    swapped = _make(tmp_path / "swapped", {"train": [(0, 40), (0, 0)], "val": [(100, 100)]})
    report = check_source(swapped)
    assert any("val without a box in train" in one.text and "'cat'" in one.text for one in report.advice)
    assert "67 %" in _topics(report)["empty images"].text
    assert "val" not in _topics(report)


def test_little_to_say_of_a_good_set(tmp_path: Path) -> None:
    source = _make(tmp_path, {"train": [(0, 40)] * 9, "val": [(0, 40)] * 5}, size=(800, 800))
    good = dataclasses.replace(SETTINGS, epochs=4000, max_long_side=800)
    assert [one.topic for one in check_source(source, settings=good).advice] == []


def test_a_split_without_usable_images_has_no_statistics(tmp_path: Path) -> None:
    make_coco_layout(tmp_path / "coco")
    for path in (tmp_path / "coco" / "val2017").iterdir():
        path.unlink()
    report = check_source(tmp_path / "coco")
    assert _codes(report)["F19", "error"] == 3
    assert list(report.statistics) == ["train"]

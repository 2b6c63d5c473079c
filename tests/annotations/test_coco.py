from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.annotations.coco import check_coco, inspect_coco, read_coco, write_coco
from core.annotations.coco_document import CocoDocument, parse_document, read_document
from core.annotations.content import ReadOptions
from core.errors import DataError

from .conftest import Edit, coco_dict, write_json


def put(path: str, value: Any) -> Edit:
    """Set `annotations.2.bbox`-like paths."""

    def edit(content: Any) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parents:
            content = content[part]
        if value is DELETE:
            del content[last]
        else:
            content[last] = value

    return edit


DELETE = object()
XYXY = [[5, 5, 35, 25], [20, 12, 39, 29], [22, 3, 40, 28], [2, 2, 12, 9], [18, 15, 38, 30], [25, 20, 33, 27]]


def set_boxes(boxes: list[Any]) -> Edit:
    def edit(content: Any) -> None:
        for annotation, box in zip(content["annotations"], boxes, strict=True):
            annotation["bbox"] = box

    return edit


def unlist_some(content: Any) -> None:
    for index in (1, 3):
        content["annotations"][index]["image_id"] = 999


def negate_many(content: Any) -> None:
    for annotation in content["annotations"]:
        annotation["bbox"][2] = -1


FAULTS: list[tuple[str, Edit, list[str]]] = [
    ("F02-no-images", put("images", DELETE), ['"images" is missing']),
    ("F02-no-annotations", put("annotations", DELETE), ['"annotations" is missing']),
    ("F02-annotations-object", put("annotations", {}), [": annotations:", "must be a list, is an object"]),
    ("F02-image-is-number", put("images.1", 5), ["images[1]", "must be an object, is a number"]),
    ("F02-image-id-missing", put("images.1.id", DELETE), ["images[1].id", "missing"]),
    ("F02-image-id-text", put("images.1.id", "one"), ["images[1].id", "'one'"]),
    ("F02-image-id-fraction", put("images.1.id", 1.0), ["images[1].id", "whole number"]),
    ("F02-image-id-large", put("images.1.id", 2**63), ["images[1].id", "64-bit"]),
    ("F02-file-name-missing", put("images.0.file_name", DELETE), ["images[0].file_name", "missing"]),
    ("F02-file-name-number", put("images.0.file_name", 3), ["images[0].file_name", "must be text, is a number"]),
    ("F02-file-name-surrogate", put("images.0.file_name", "\ud800"), ["images[0].file_name", "Unicode"]),
    ("F02-width-missing", put("images.0.width", DELETE), ["images[0].width", "missing"]),
    ("F02-height-zero", put("images.0.height", 0), ["images[0].height", "positive"]),
    ("F02-annotation-id-missing", put("annotations.3.id", DELETE), ["annotations[3].id", "missing"]),
    ("F02-annotation-id-bool", put("annotations.3.id", True), ["annotations[3].id", "True"]),
    ("F02-annotation-id-large", put("annotations.3.id", 2**63), ["64 bits"]),
    ("F02-category-null", put("annotations.3.category_id", None), ["annotations[3].category_id", "missing"]),
    ("F02-crowd-text", put("annotations.3.iscrowd", "no"), ["annotations[3].iscrowd", "0 or 1"]),
    ("F02-area-nan", put("annotations.3.area", float("nan")), ["annotations[3].area", "nan"]),
    ("F02-no-categories", put("categories", []), ["categories", "no categories"]),
    ("F04-image-id", put("images.2.id", 1), ["images[2]", "images[0]", "'003.png'", "'001.png'"]),
    ("F05-annotation-id", put("annotations.4.id", 101), ["annotations[4]", "annotations[1]", "101"]),
    ("F06-unknown-image", unlist_some, ["annotations[1].image_id", "2 such", "annotations[3].image_id", "999"]),
    ("F07-unknown-category", put("annotations.2.category_id", 4), ["annotations[2].category_id", "4"]),
    ("F08-negative-width", put("annotations.2.bbox", [1, 2, -3, 4]), ["annotations[2].bbox", "negative", "-3"]),
    ("F08-many", negate_many, ["6 such", "annotations[4].bbox, ..."]),
    ("F09-nan", put("annotations.2.bbox", [1, 2, float("nan"), 4]), ["annotations[2].bbox", "finite", "nan"]),
    ("F09-inf", put("annotations.2.bbox", [1, float("-inf"), 2, 4]), ["annotations[2].bbox", "finite", "-inf"]),
    ("F09-huge", put("annotations.2.bbox", [1, 10**400, 2, 4]), ["annotations[2].bbox", "finite"]),
    ("F09-large", put("annotations.2.bbox", [1, 2, 1e9, 4]), ["annotations[2].bbox", "finite", "1000000000.0"]),
    ("F09-area", put("annotations.2.area", 1e18), ["annotations[2].area", "finite"]),
    ("F09-text", put("annotations.2.bbox", [1, "2", 3, 4]), ["annotations[2].bbox", "'2'"]),
    ("F09-null-inside", put("annotations.2.bbox", [1, None, 3, 4]), ["annotations[2].bbox", "None"]),
    ("F09-null", put("annotations.2.bbox", None), ["annotations[2].bbox", "missing or null"]),
    ("F09-missing", put("annotations.2.bbox", DELETE), ["annotations[2].bbox", "missing or null"]),
    ("F09-three", put("annotations.2.bbox", [1, 2, 3]), ["annotations[2].bbox", "a list of 3"]),
    ("F09-five", put("annotations.2.bbox", [1, 2, 3, 4, 5]), ["annotations[2].bbox", "a list of 5"]),
    ("F10-outside-right", put("annotations.2.bbox", [40, 2, 3, 4]), ["annotations[2].bbox", "outside", "40 x 30"]),
    ("F10-outside-left", put("annotations.2.bbox", [-8, 2, 8, 4]), ["annotations[2].bbox", "outside"]),
    ("F11-xyxy", set_boxes(XYXY), ["edges x1, y1, x2, y2"]),
    ("F11-normalised", set_boxes([[0.1, 0.2, 0.5, 0.25]] * 6), ["normalised"]),
    ("F17-duplicate-name", put("categories.1.name", "cat"), ["categories[1]", "'cat'", "categories[0]"]),
    ("F17-empty-name", put("categories.1.name", " "), ["categories[1].name", "empty"]),
    ("F17-duplicate-id", put("categories.1.id", 3), ["categories[1]", "id 3", "categories[0]"]),
    ("F26-huge-size", put("images.0.width", 10**9), ["images[0]", "1000000000"]),
    ("F31-parent", put("images.0.file_name", "../x.png"), ["images[0].file_name", "escapes image root"]),
    ("F31-inner-parent", put("images.0.file_name", "a/../../x.png"), ["images[0].file_name", "escapes image root"]),
    ("F31-absolute", put("images.0.file_name", "/etc/x.png"), ["images[0].file_name", "escapes image root"]),
    ("F31-drive", put("images.0.file_name", "C:\\x.png"), ["images[0].file_name", "escapes image root"]),
    ("F31-nul", put("images.0.file_name", "x\0.png"), ["images[0].file_name", "escapes image root"]),
]


@pytest.mark.parametrize(("edit", "parts"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
def test_refuses(tmp_path: Path, edit: Edit, parts: list[str]) -> None:
    content = coco_dict()
    edit(content)
    path = write_json(tmp_path / "a.json", content)
    with pytest.raises(DataError) as raised:
        read_coco(path)
    assert str(path) in str(raised.value.where)
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param('{"images": [', ["a.json:1:13", "not valid JSON"], id="F01-truncated"),
        pytest.param('{\n"images": x}', ["a.json:2:11"], id="F01-not-json"),
        pytest.param("", ["a.json:1:1"], id="F01-empty"),
        pytest.param("[" * 100_000, ["nested too deeply"], id="F01-deep"),
        pytest.param("<annotation/>", ["looks like XML", "prepare-data"], id="F03-xml"),
        pytest.param('[{"image_id": 1, "score": 0.5}]', ["looks like a results file"], id="F03-results"),
        pytest.param("[]", ["this is a list"], id="F03-empty-list"),
        pytest.param("3", ["this is a number"], id="F03-number"),
        pytest.param('{"annotations": [{"segments_info": []}]}', ["panoptic"], id="F03-panoptic"),
        pytest.param('{"annotations": [{"caption": "x"}]}', ["captions"], id="F03-captions"),
        pytest.param('{"shapes": [], "imagePath": "x"}', ["LabelMe"], id="F03-labelme"),
        pytest.param('[{"image": "x", "annotations": []}]', ["CreateML"], id="F03-createml"),
    ],
)
def test_refuses_other_files(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write_json(tmp_path / "a.json", text)
    with pytest.raises(DataError) as raised:
        read_coco(path)
    for part in parts:
        assert part in f"{raised.value} {raised.value.hint}"


def test_f01_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DataError, match="not valid JSON"):
        read_coco(tmp_path / "a.json")


def test_f01_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such annotation file"):
        read_coco(tmp_path / "a.json")
    with pytest.raises(DataError, match="cannot read"):
        read_coco(tmp_path)


def test_f31_link_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "outside.png").touch()
    root = tmp_path / "images"
    root.mkdir()
    (root / "001.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match=r"images\[0\].file_name.*by a link"):
        read_coco(write_json(tmp_path / "a.json", coco_dict()), root)


def test_reads_what_stands_in_the_file(tmp_path: Path) -> None:
    content = coco_dict()
    content["annotations"][1] |= {"iscrowd": 1, "bbox": [35, -2, 10, 6]}
    del content["annotations"][2]["area"]
    content["images"][0]["width"] = 40.0
    read, findings = inspect_coco(write_json(tmp_path / "a.json", content))
    assert [image.file_name for image in read.images] == ["001.png", "002.png", "003.png", "004.png"]
    assert read.images[0].width == 40
    assert [(category.id, category.name) for category in read.categories] == [(3, "cat"), (7, "dog")]
    assert [annotation.is_crowd for annotation in read.annotations] == [False, True] + [False] * 4
    assert read.annotations[1].box_xywh_px == (35, -2, 10, 6)
    assert read.annotations[1].area == 50
    assert read.annotations[2].area == 10.5 * 6
    assert findings.partly_outside_boxes == 1
    assert findings.crowd_boxes == 1
    assert findings.images_without_objects == 1
    assert any("over an image's edge" in note for note in findings.notes())


def test_images_in_any_order(tmp_path: Path) -> None:
    content = coco_dict()
    for image, width in zip(content["images"], (40, 12, 40, 40), strict=True):
        image["width"] = width
    content["images"] = [content["images"][position] for position in (2, 0, 3, 1)]
    read, findings = inspect_coco(write_json(tmp_path / "a.json", content))
    assert read.image_rows.tolist() == [1, 1, 3, 3, 0, 0]
    assert findings.partly_outside_boxes == 2
    with pytest.raises(KeyError, match="2"):
        _ = dataclasses.replace(read, images=read.images[:3]).image_rows
    with pytest.raises(KeyError, match="1"):
        _ = dataclasses.replace(read, images=()).image_rows


def test_f08_zero_size_boxes_are_dropped_and_counted(tmp_path: Path) -> None:
    content = coco_dict()
    content["annotations"][0]["bbox"] = [1, 2, 0, 4]
    content["annotations"][3]["bbox"] = [1, 2, 3, 0.0]
    read, findings = inspect_coco(write_json(tmp_path / "a.json", content))
    assert findings.zero_size_boxes == 2
    assert [annotation.id for annotation in read.annotations] == [101, 102, 104, 105]


def test_f06_subset_in_the_reference_style(tmp_path: Path) -> None:
    content = coco_dict(10)
    content["images"] = content["images"][:2]
    read, findings = inspect_coco(write_json(tmp_path / "a.json", content))
    assert findings.unlisted_annotations == 14
    assert {annotation.image_id for annotation in read.annotations} == {1, 2}


def test_f06_accepted_when_told(tmp_path: Path) -> None:
    content = coco_dict()
    unlist_some(content)
    path = write_json(tmp_path / "a.json", content)
    assert inspect_coco(path, options=ReadOptions(allow_unlisted=True))[1].unlisted_annotations == 2


def test_f06_no_annotation_fits(tmp_path: Path) -> None:
    content = coco_dict()
    for annotation in content["annotations"]:
        annotation["image_id"] += 1000
    with pytest.raises(DataError, match="not among the images"):
        read_coco(write_json(tmp_path / "a.json", content))


def test_f12_no_annotations_at_all(tmp_path: Path) -> None:
    content = coco_dict() | {"annotations": []}
    read, findings = inspect_coco(write_json(tmp_path / "a.json", content))
    assert findings.images_without_objects == len(read.images) == 4
    assert read.by_image() == {1: [], 2: [], 3: [], 4: []}


@pytest.mark.parametrize("ids", [(0, 1), (1, 2), (5, 10**9), (-1, 3)], ids=str)
def test_f16_category_ids(tmp_path: Path, ids: tuple[int, int]) -> None:
    content = coco_dict()
    for position, ident in enumerate(ids):
        content["categories"][position]["id"] = ident
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"] == 7]
    read = read_coco(write_json(tmp_path / "a.json", content))
    assert tuple(category.id for category in read.categories) == ids


def test_f18_class_without_instances(tmp_path: Path) -> None:
    content = coco_dict()
    content["categories"].append({"id": 9, "name": "[red]emu\x1b"})
    _, findings = inspect_coco(write_json(tmp_path / "a.json", content))
    assert findings.classes_without_instances == ("[red]emu\x1b",)
    assert any("emu" in note for note in findings.notes())


def test_boxes_that_touch_the_edge_are_no_edges(tmp_path: Path) -> None:
    """Real boxes end at the image's edge, and some a pixel beyond it."""
    content = coco_dict()
    set_boxes([[10, 5, 30, 25], [0, 0, 40, 30], [20, 10, 21, 20], [1, 1, 2, 2], [39, 29, 1, 1], [0, 0, 1, 1]])(content)
    assert len(read_coco(write_json(tmp_path / "a.json", content)).annotations) == 6


def test_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    read = read_coco(write_json(tmp_path / "a.json", coco_dict()))
    write_coco(tmp_path / "b.json", read)
    assert read_coco(tmp_path / "b.json") == read
    write_coco(tmp_path / "c.json", read_coco(tmp_path / "b.json"))
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    assert json.loads((tmp_path / "b.json").read_bytes())["info"] == {}


def test_pycocotools_reads_what_we_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    write_coco(tmp_path / "b.json", read_coco(write_json(tmp_path / "a.json", coco_dict())))
    loaded = coco.COCO(str(tmp_path / "b.json"))
    assert loaded.getImgIds() == [1, 2, 3, 4]
    result = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    assert len(loaded.loadRes([result]).anns) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = st.sampled_from(
    ["images", "annotations", "categories"]
    + [f"images.1.{key}" for key in ("id", "file_name", "width", "height")]
    + [f"annotations.1.{key}" for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "bbox.2")]
    + [f"categories.1.{key}" for key in ("id", "name")]
    + ["images.1", "annotations.1", "categories.1"]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(PLACES, VALUES), min_size=1, max_size=2))
def test_any_value_is_read_or_refused_by_name(tmp_path: Path, edits: list[tuple[str, Any]]) -> None:
    content = copy.deepcopy(coco_dict())
    for place, value in edits:
        with contextlib.suppress(LookupError, TypeError):  # an earlier edit removed the place
            put(place, value)(content)
    path = write_json(tmp_path / "a.json", content)
    try:
        read = read_coco(path)
    except DataError as error:
        assert error.where  # noqa: PT017 - every other exception fails the test
    else:
        assert read.by_image().keys() == {image.id for image in read.images}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
def test_any_bytes_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError):
        read_coco(tmp_path / "a.json")


NUMBERS = st.integers() | st.floats() | st.sampled_from([640.0, 2.0, 0, 1, -0.0, 1e18, 2**63, 10**30, True])
BOXES = st.lists(st.integers(-3, 45) | st.floats(-3, 45), min_size=4, max_size=4) | st.lists(NUMBERS, max_size=5)
ENTRIES = {
    "images": {
        "id": st.integers(0, 5) | VALUES,
        "file_name": st.sampled_from(["a.png", "b/c.png", "/d.png", "../e.png", "f\ud800.png", "é.png"]) | VALUES,
        "width": st.just(40) | NUMBERS,
        "height": st.just(40.0) | NUMBERS,
    },
    "annotations": {
        "id": st.integers(0, 9) | VALUES,
        "image_id": st.integers(0, 5) | VALUES,
        "category_id": st.integers(0, 2) | VALUES,
        "bbox": BOXES | VALUES,
        "area": st.floats(0, 100) | NUMBERS,
        "iscrowd": st.sampled_from([0, 1, False, True, 1.0, 2, "1", None]),
    },
    "categories": {"id": st.integers(0, 2) | VALUES, "name": st.sampled_from(["cat", "dög", "", "\udc00"]) | VALUES},
}


@st.composite
def coco_bytes(draw: st.DrawFn) -> bytes:
    """A COCO file that was right before some values, keys or bytes of it were replaced."""
    content = coco_dict(num_images=draw(st.integers(1, 4)))
    for _ in range(draw(st.integers(0, 3))):
        section = draw(st.sampled_from(sorted(ENTRIES)))
        entry = draw(st.sampled_from(content[section] or [{}]))
        key = draw(st.sampled_from(sorted(ENTRIES[section])))
        entry.pop(key, None)
        if draw(st.integers(0, 3)):
            entry[key] = draw(ENTRIES[section][key])
        if not draw(st.integers(0, 3)):
            entry["note"] = draw(VALUES)
    written = json.dumps(content, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    content_bytes = bytearray(written.encode("utf-8", "surrogatepass"))
    for position, byte in draw(
        st.lists(st.tuples(st.integers(0, len(content_bytes) - 1), st.integers(0, 255)), max_size=1)
    ):
        if not draw(st.integers(0, 4)):
            content_bytes[position] = byte
    return bytes(content_bytes)


def outcome_of(read: Callable[[], CocoDocument]) -> tuple[object, ...]:
    try:
        annotations, findings = check_coco(read())
    except DataError as error:
        return error.message, error.where, error.hint
    values = [repr(part) for part in (annotations.images, annotations.annotations, annotations.categories)]
    return *values, findings


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=coco_bytes())
def test_what_passes_over_polygons_sees_what_the_plain_parser_sees(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert outcome_of(lambda: read_document(path)) == outcome_of(lambda: parse_document(content, path))


def test_a_file_without_faults_is_not_parsed_whole(tmp_path: Path) -> None:
    content = coco_dict()
    content["annotations"][0] |= {"segmentation": {"counts": "a`é\\", "size": [30, 40]}, "iscrowd": True}
    del content["annotations"][1]["area"], content["annotations"][2]["iscrowd"]
    assert read_document(write_json(tmp_path / "a.json", content)).parsed is None
    content["annotations"][3]["score"] = float("nan")
    assert read_document(write_json(tmp_path / "a.json", content)).parsed is not None

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.annotations.content import ReadOptions
from core.annotations.faults import FaultLog
from core.annotations.readers.voc import is_voc, read_voc
from core.errors import DataError

from .conftest import make_voc, voc_xml

LISTS = {
    "train": ["a0", "a2", "a1"],
    "val": ["a3"],
    "trainval": ["a0", "a1", "a2", "a3"],
    "test": ["a4"],
    "ant_train": ["a0 -1", "a1 1"],
}


def put_xml(root: Path, xml: str, stem: str = "a1") -> None:
    (root / "Annotations" / f"{stem}.xml").write_text(xml)


def test_lists_make_the_splits(tmp_path: Path) -> None:
    folder = read_voc(make_voc(tmp_path / "voc", LISTS))
    names = {split: [i.file_name for i in content.annotations.images] for split, content in folder.splits.items()}
    assert names == {"train": ["a0.jpg", "a1.jpg", "a2.jpg"], "val": ["a3.jpg"], "test": ["a4.jpg"]}
    assert folder.notes == ("XML files that are in no list, left out: 1",)
    for content in folder.splits.values():
        assert [(c.id, c.name) for c in content.annotations.categories] == [(1, "ant"), (2, "zebra")]
        assert content.image_root == tmp_path / "voc" / "JPEGImages"


def test_image_ids_differ_between_splits(tmp_path: Path) -> None:
    splits = read_voc(make_voc(tmp_path / "voc", LISTS)).splits.values()
    ids = [image.id for content in splits for image in content.annotations.images]
    assert len(set(ids)) == len(ids) == 5


def test_trainval_stands_in_for_a_missing_train(tmp_path: Path) -> None:
    lists = {"trainval": ["a0", "a1"], "test": ["a2"]}
    folder = read_voc(make_voc(tmp_path / "voc", lists))
    assert {split: len(c.annotations.images) for split, c in folder.splits.items()} == {"train": 2, "test": 1}


def test_without_lists_all_is_train(tmp_path: Path) -> None:
    folder = read_voc(make_voc(tmp_path / "voc"))
    assert list(folder.splits) == ["train"]
    assert [len(content.annotations.images) for content in folder.splits.values()] == [6]


def test_folder_named_images_and_names_with_spaces(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", {"train": ["a0", "a b 1"], "val": ["a1 1"]})
    (root / "JPEGImages").rename(root / "images")
    Image.new("RGB", (40, 30)).save(root / "images" / "a b 1.png")
    put_xml(root, voc_xml("x.jpg", []), "a b 1")
    folder = read_voc(root)
    assert [i.file_name for i in folder.splits["train"].annotations.images] == ["a b 1.png", "a0.jpg"]
    assert [i.file_name for i in folder.splits["val"].annotations.images] == ["a1.jpg"]


def test_xml_beside_the_images(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(voc_xml("x.png", [("ant", 1, 2, 3, 4)]))
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png")
    assert is_voc(tmp_path)
    assert read_voc(tmp_path).splits["train"].annotations.images[0].file_name == "x.png"


@pytest.mark.parametrize(
    ("one_based", "box"), [(False, (3.0, 4.0, 10.5, 20.0)), (True, (2.0, 3.0, 10.5, 20.0))], ids=["as-written", "one"]
)
def test_edges(tmp_path: Path, one_based: bool, box: tuple[float, ...]) -> None:
    root = make_voc(tmp_path / "voc")
    put_xml(root, voc_xml("a1.jpg", [("ant", "3", " 4 ", "13.5", 24)]))
    (annotation,) = read_voc(root, ReadOptions(one_based=one_based)).splits["train"].annotations.by_image()[2]
    assert annotation.box_xywh_px == box
    assert annotation.area == 210
    assert not annotation.is_crowd


def test_f08_zero_size_boxes_are_dropped_and_counted(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    put_xml(root, voc_xml("a1.jpg", [("ant", 3, 4, 3, 9), ("ant", 3, 4, 9, 4), ("ant", 3, 4, 9, 9)], difficult=1))
    content = read_voc(root).splits["train"]
    assert content.findings.zero_size_boxes == 2
    assert content.findings.difficult_boxes == 1
    assert len(content.annotations.by_image()[2]) == 1


def test_f12_picture_without_objects(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    put_xml(root, voc_xml("a1.jpg", []))
    content = read_voc(root).splits["train"]
    assert content.findings.images_without_objects == 1
    assert content.annotations.by_image()[2] == []


@pytest.mark.parametrize("size", [None, (0, 0), ("", "")], ids=["missing", "zero", "empty"])
def test_f25_size_from_the_image(tmp_path: Path, size: Any) -> None:
    root = make_voc(tmp_path / "voc")
    put_xml(root, voc_xml("a1.jpg", [("ant", 1, 2, 3, 4)], size))
    image = read_voc(root).splits["train"].annotations.images[1]
    assert (image.width, image.height) == (40, 30)


def box(*edges: Any) -> str:
    return voc_xml("a1.jpg", [("ant", *edges)])


ENTITY = '<!DOCTYPE a [<!ENTITY x "y">]><annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    ("xml", "parts"),
    [
        pytest.param(box(1, 2, 3, 4)[:60], ["a1.xml:1:", "not valid XML"], id="F01-truncated"),
        pytest.param("<annotation>\n<filename>", ["a1.xml:2:"], id="F01-line"),
        pytest.param("", ["a1.xml:1:", "not valid XML"], id="F01-empty"),
        pytest.param("<html/>", ["not <annotation>"], id="F03-other-xml"),
        pytest.param(ENTITY, ["entities"], id="F37-entity"),
        pytest.param(box(9, 2, 3, 4), ["object[0].bndbox", "negative"], id="F08-negative"),
        pytest.param(box(1, "nan", 3, 4), ["object[0].bndbox.ymin", "finite"], id="F09-nan"),
        pytest.param(box(1, 2, "1e999", 4), ["object[0].bndbox.xmax", "finite"], id="F09-inf"),
        pytest.param(box(1, 2, 3, "four"), ["object[0].bndbox.ymax", "'four'"], id="F09-text"),
        pytest.param(box("", 2, 3, 4), ["object[0].bndbox.xmin", "missing"], id="F09-empty"),
        pytest.param(box(40, 2, 43, 4), ["object[0].bndbox", "outside"], id="F10-outside"),
        pytest.param(voc_xml("a", [(" ", 1, 2, 3, 4)]), ["object[0].name", "missing"], id="F17-empty-name"),
        pytest.param(voc_xml("a", [], ("wide", 3)), ["size.width", "'wide'"], id="F02-size"),
        pytest.param(voc_xml("a", [], (10**8, 3)), ["size", "100000000 x 3 pixels are more"], id="F26-size"),
    ],
)
def test_refuses(tmp_path: Path, xml: str, parts: list[str]) -> None:
    root = make_voc(tmp_path / "voc")
    put_xml(root, xml)
    with pytest.raises(DataError) as raised:
        read_voc(root)
    for part in ("a1.xml", *parts):
        assert part in str(raised.value)


def test_f31_file_name_that_leads_out(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    (root / "JPEGImages" / "a1.jpg").unlink()
    put_xml(root, voc_xml("../../secret.jpg", []))
    with pytest.raises(DataError, match=r"a1.xml: filename.*escapes image root"):
        read_voc(root)


def test_file_name_that_is_no_unicode(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    name = os.fsdecode(b"gr\xf6\xdfe")
    try:
        (root / "JPEGImages" / "a1.jpg").rename(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / "a1.xml").rename(root / "Annotations" / f"{name}.xml")
    except OSError:
        pytest.skip("this file system has Unicode names only")
    with pytest.raises(DataError, match="not valid Unicode"):
        read_voc(root)


@pytest.mark.parametrize(
    ("names", "message"), [(["a0", "b7"], "1 listed images.*b7"), (["a0", "a0"], "'a0' is listed twice")]
)
def test_f19_list_that_does_not_fit(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_voc(make_voc(tmp_path / "voc", {"train": names}))
    assert "train.txt" in str(raised.value.where)


def test_no_boxes_and_no_xml(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", num_images=1)
    put_xml(root, voc_xml("a0.jpg", []), "a0")
    with pytest.raises(DataError, match="no XML file has a box"):
        read_voc(root)
    with pytest.raises(DataError, match="no Pascal VOC folder"):
        read_voc(tmp_path)


def test_f04_image_that_two_files_describe(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    for stem in ("a7", "a8"):
        put_xml(root, voc_xml("a2.jpg", [("ant", 3, 4, 13, 24)]), stem)
    with pytest.raises(DataError, match=r"'a2\.jpg' is described already by a2\.xml") as raised:
        read_voc(root)
    assert raised.value.code == "F04"
    log = FaultLog(drops=True)
    assert len(read_voc(root, log=log).splits["train"].annotations.images) == 6
    assert [(fault.code, fault.count) for fault in log.faults] == [("F04", 2)]

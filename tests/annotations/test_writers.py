from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from defusedxml.ElementTree import parse
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.annotations.content import SplitContent
from core.annotations.prepared import open_dataset, read_split
from core.annotations.readers.coco_files import read_coco_files
from core.annotations.readers.voc import read_voc
from core.annotations.records import Annotation, AnnotationSet, BoxXYWH, Category, ImageRecord
from core.annotations.writers.coco import write_coco_folder
from core.annotations.writers.voc import write_voc
from core.errors import DataError, MachineError

Write = Callable[[Mapping[str, SplitContent], Path], list[str]]
Box = tuple[int, BoxXYWH]
"""Category id and box."""
SIZE = (40, 30)
CLASSES = (Category(4, "cat"), Category(9, "dog"))
CAT: Box = (4, (3.0, 4.0, 10.5, 20.25))
DOG: Box = (9, (0.5, 0.0, 1 / 3, 30.0))


def make_split(
    folder: Path, boxes_of_image: Mapping[str, list[Box]], categories: tuple[Category, ...] = CLASSES
) -> SplitContent:
    """Draw an image of its own for every name, and list the boxes on it."""
    images: list[ImageRecord] = []
    annotations: list[Annotation] = []
    for name, boxes in boxes_of_image.items():
        image = ImageRecord(100 + len(images), name, *SIZE)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # The folder's own name is in the pixels, so that no two splits have equal pictures.
        colour = (len(images), len(folder.name), ord(folder.name[0]))
        Image.new("RGB", SIZE, colour).save(path, format="PNG")
        images.append(image)
        for category_id, box in boxes:
            annotations.append(
                Annotation(1 + len(annotations), image.id, category_id, box, box[2] * box[3], is_crowd=False)
            )
    return SplitContent(AnnotationSet(tuple(images), tuple(annotations), categories), folder)


Pictures = dict[bytes, list[tuple[str, BoxXYWH]]]


def pictures(content: SplitContent) -> Pictures:
    """Class name and box of every annotation, by the bytes of the image."""
    names = {category.id: category.name for category in content.annotations.categories}
    by_image = content.annotations.by_image()
    return {
        (content.image_root / image.file_name).read_bytes(): [
            (names[a.category_id], a.box_xywh_px) for a in by_image[image.id]
        ]
        for image in content.annotations.images
    }


def assert_equal(expected: Pictures, found: Pictures, tolerance_px: float) -> None:
    assert found.keys() == expected.keys()
    for picture, boxes in expected.items():
        assert [name for name, _ in found[picture]] == [name for name, _ in boxes]
        for (_, box), (_, wanted) in zip(found[picture], boxes, strict=True):
            np.testing.assert_allclose(box, wanted, rtol=0, atol=tolerance_px)


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, SplitContent]:
    return {
        "train": make_split(tmp_path / "a", {"1.png": [CAT, (9, (-2.5, 1 / 3, 20, 29.7))], "2.png": []}),
        "val": make_split(tmp_path / "bb", {"3.png": [CAT]}),
        "test": make_split(tmp_path / "ccc", {"4.png": [(9, (0.0, 0.0, 40.0, 30.0))]}),
    }


def test_voc_folder(tmp_path: Path, splits: dict[str, SplitContent]) -> None:
    assert write_voc(splits, tmp_path / "out") == []
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {
        *(f"Annotations/{name}.xml" for name in range(1, 5)),
        *(f"JPEGImages/{name}.png" for name in range(1, 5)),
        *(f"ImageSets/Main/{split}.txt" for split in splits),
    }
    assert (tmp_path / "out" / "ImageSets" / "Main" / "train.txt").read_text() == "1\n2\n"
    root = parse(tmp_path / "out" / "Annotations" / "1.xml").getroot()
    assert root is not None
    assert [root.findtext(tag) for tag in ("folder", "filename", "size/width", "size/height", "segmented")] == [
        "JPEGImages", "1.png", "40", "30", "0"
    ]  # fmt: skip
    first = root.find("object")
    assert first is not None
    edges = [first.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    assert edges == ["3", "4", "13.5", "24.25"]
    assert [first.findtext(tag) for tag in ("name", "difficult", "truncated")] == ["cat", "0", "0"]


def test_voc_read_back(tmp_path: Path, splits: dict[str, SplitContent]) -> None:
    write_voc(splits, tmp_path / "out")
    read = read_voc(tmp_path / "out").splits
    assert list(read) == ["train", "val", "test"]
    for split, content in splits.items():
        assert_equal(pictures(content), pictures(read[split]), 1e-9)


def test_coco_folder_is_a_data_set(tmp_path: Path, splits: dict[str, SplitContent]) -> None:
    (note,) = write_coco_folder(splits, tmp_path / "out")
    assert "COCO 2017" in note
    dataset = open_dataset(tmp_path / "out")
    assert dataset.classes == CLASSES
    assert list(dataset.splits) == ["train", "val", "test"]
    for split, content in splits.items():
        assert read_split(dataset, split)[0] == content.annotations
    assert (tmp_path / "out" / "annotations" / "instances_test2017.json").is_file()
    assert (tmp_path / "out" / "test2017" / "4.png").read_bytes() == (tmp_path / "ccc" / "4.png").read_bytes()


def test_coco_keeps_folders_crowds_and_areas(tmp_path: Path) -> None:
    content = make_split(tmp_path / "a", {"x/1.png": [], "y/1.png": []})
    annotations = (
        Annotation(70, 100, 4, (1.0, 2.0, 3.0, 4.0), 5.5, is_crowd=False),
        Annotation(71, 101, 9, (1.0, 2.0, 30.0, 20.0), 60.0, is_crowd=True),
    )
    annotation_set = AnnotationSet(content.annotations.images, annotations, CLASSES)
    write_coco_folder({"train": SplitContent(annotation_set, content.image_root)}, tmp_path / "out")
    read = read_coco_files(tmp_path / "out").splits["train"]
    assert read.annotations == annotation_set
    assert pictures(read).keys() == pictures(content).keys()


def test_voc_leaves_out_what_it_has_no_place_for_and_says_it(tmp_path: Path) -> None:
    content = make_split(tmp_path / "a", {"1.png": [], "2.png": []})
    annotations = (
        Annotation(1, 100, 4, (1.0, 2.0, 3.0, 4.0), 5.5, is_crowd=False),
        Annotation(2, 101, 9, (1.0, 2.0, 30.0, 20.0), 60.0, is_crowd=True),
    )
    annotation_set = AnnotationSet(content.annotations.images, annotations, CLASSES)
    notes = write_voc({"train": SplitContent(annotation_set, content.image_root)}, tmp_path / "out")
    assert notes == [
        "crowds left out, which Pascal VOC does not know: 1",
        "areas of masks left out, which Pascal VOC does not know: 1",
        "classes left out, as Pascal VOC names only those that have boxes: 1 (dog)",
    ]
    read = pictures(read_voc(tmp_path / "out").splits["train"])
    assert sorted(map(len, read.values())) == [0, 1]


def test_voc_makes_clashing_names_distinct(tmp_path: Path) -> None:
    splits = {
        "train": make_split(tmp_path / "a", {"x.png": [CAT], "x.jpg": [CAT, CAT], "d/X.png": [], "y.png": []}),
        "val": make_split(tmp_path / "bb", {"x.png": [CAT, CAT, CAT], "no suffix": [DOG], "d_X.png": []}),
    }
    (note,) = write_voc(splits, tmp_path / "out")
    assert note == (
        "images renamed, as Pascal VOC has one folder and needs distinct stems: 5 ('x.jpg' -> 'x-2.jpg', "
        "'d/X.png' -> 'd_X.png', 'x.png' -> 'x-3.png', 'no suffix' -> 'no suffix.jpg', 'd_X.png' -> 'd_X-2.png')"
    )
    read = read_voc(tmp_path / "out").splits
    for split, content in splits.items():
        assert_equal(pictures(content), pictures(read[split]), 1e-9)


def test_voc_replaces_what_cannot_stand_in_xml(tmp_path: Path) -> None:
    names = ["a\x01b", "a_b", "a\nb", " a_b ", "\ufffe", "<&>\"'", "犬\x85"]
    categories = tuple(Category(index, name) for index, name in enumerate(names))
    boxes = [(category.id, (1.0 + category.id, 2.0, 3.0, 4.0)) for category in categories]
    content = make_split(tmp_path / "a", {"t\x07\u2028 x .png": boxes, " .png": []}, categories)
    notes = write_voc({"train": content}, tmp_path / "out")
    assert notes[0].endswith("'t\\x07\\u2028 x .png' -> 't__ x.png', ' .png' -> '_.png')")
    assert notes[1].startswith("classes renamed, as their names cannot stand in XML: 6 ('a\\x01b' -> 'a_b', ")
    read = read_voc(tmp_path / "out").splits["train"]
    found = [name for boxes in pictures(read).values() for name, _ in boxes]
    assert found == ["a_b", "a_b-2", "a_b-3", "a_b-4", "_", "<&>\"'", "犬_"]


@pytest.mark.parametrize("write", [write_voc, write_coco_folder])
def test_f19_missing_image(tmp_path: Path, splits: dict[str, SplitContent], write: Write) -> None:
    (tmp_path / "bb" / "3.png").unlink()
    with pytest.raises(DataError, match="missing") as raised:
        write(splits, tmp_path / "out")
    assert raised.value.code == "F19"
    assert raised.value.where == str(tmp_path / "bb" / "3.png")


@pytest.mark.parametrize("write", [write_voc, write_coco_folder])
@pytest.mark.parametrize("name", ["../3.png", "/3.png"])
def test_f31_names_cannot_lead_out(tmp_path: Path, write: Write, name: str) -> None:
    image = ImageRecord(1, name, *SIZE)
    content = SplitContent(AnnotationSet((image,), (), CLASSES), tmp_path / "a")
    Image.new("RGB", SIZE).save(tmp_path / "3.png")
    with pytest.raises(DataError, match="escapes image root"):
        write({"train": content}, tmp_path / "out" / "deep")
    assert not list((tmp_path / "out").rglob("3.png"))


@pytest.mark.parametrize("write", [write_voc, write_coco_folder])
def test_f71_folder_that_cannot_be_made(tmp_path: Path, splits: dict[str, SplitContent], write: Write) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(MachineError):
        write(splits, tmp_path / "out")


LETTERS = st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="/\\:\ufffe\uffff")
NAMES = st.text(LETTERS, max_size=8)
TRICKY = st.sampled_from(["a", "A", "a b", "it's", '"q"', "<&>", "größe", "犬", "a.b", "-1", "e\u0301"])


def some_boxes(ids: st.SearchStrategy[int]) -> st.SearchStrategy[list[Box]]:
    @st.composite
    def box(draw: st.DrawFn) -> Box:
        left, top = (draw(st.floats(1.5, side - 0.5)) for side in SIZE)
        width, height = (
            draw(st.floats(0.01, side - start + 1.5)) for side, start in zip(SIZE, (left, top), strict=True)
        )
        return draw(ids), (left, top, width, height)

    return st.lists(box(), max_size=3)


@st.composite
def drawn_splits(draw: st.DrawFn) -> tuple[tuple[Category, ...], dict[str, dict[str, list[Box]]]]:
    class_names = draw(st.lists((TRICKY | NAMES).map(str.strip).filter(bool), min_size=1, max_size=3, unique=True))
    categories = tuple(Category(3 * index + 1, name) for index, name in enumerate(class_names))
    boxes = some_boxes(st.sampled_from([category.id for category in categories]))
    suffixes = st.sampled_from([".png", ".JPG", ""])
    names = st.builds(str.__add__, TRICKY | NAMES.filter(lambda name: name.strip(". ")), suffixes)
    parts = {split: draw(st.dictionaries(names, boxes, min_size=1, max_size=3)) for split in ("train", "val", "test")}
    parts["train"]["surely.png"] = [(categories[0].id, (2.0, 2.0, 5.0, 5.0))]
    return categories, parts


HIDDEN: dict[str, dict[str, list[Box]]] = {
    "train": {"a.png": [(1, (2.0, 2.0, 5.0, 5.0))]}, "val": {"a.png": []}, "test": {".0.png": []},
}  # fmt: skip


@given(drawn=drawn_splits())
@example(drawn=((Category(1, "a"),), HIDDEN))
@settings(max_examples=40, deadline=None)
def test_any_annotations_survive_the_round_trip(
    drawn: tuple[tuple[Category, ...], dict[str, dict[str, list[Box]]]],
) -> None:
    categories, parts = drawn
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folders = {"train": "a", "val": "bb", "test": "ccc"}
        splits = {split: make_split(root / folders[split], part, categories) for split, part in parts.items()}
        write_coco_folder(splits, root / "coco")
        write_voc(splits, root / "voc")
        dataset = open_dataset(root / "coco")
        from_voc = read_voc(root / "voc").splits
        for split, content in splits.items():
            assert_equal(pictures(content), pictures(from_voc[split]), 1e-6)
            assert read_split(dataset, split)[0] == content.annotations
            copied = SplitContent(content.annotations, dataset.splits[split].image_root)
            assert_equal(pictures(content), pictures(copied), 0)

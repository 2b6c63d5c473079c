from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.annotations.content import ReadOptions, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.readers.csv_table import is_csv, read_csv
from core.errors import DataError

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
ROWS = "a.jpg,40,30,dog,3,4,13.5,24\na.jpg,40,30,cat,0,0,10,10\nb.jpg,40,30,cat,1,2,3,4\n"


def make(root: Path, text: str | bytes, name: str = "annotations.csv", images: str = "a.jpg b.jpg") -> Path:
    """Put a file and images of 40 x 30 pixels into a folder."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for index, image in enumerate(images.split()):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (50 * index, 9, 9)).save(root / image)
    return root


Simple = dict[str, list[tuple[str, tuple[float, ...]]]]


def simple(content: SplitContent) -> Simple:
    """Class and box of every annotation, by file name."""
    names = {category.id: category.name for category in content.annotations.categories}
    by_image = content.annotations.by_image()
    return {
        image.file_name: [(names[a.category_id], a.box_xywh_px) for a in by_image[image.id]]
        for image in content.annotations.images
    }


def train(root: Path, options: ReadOptions | None = None) -> Simple:
    source = read_csv(root, options)
    assert list(source.splits) == ["train"]
    return simple(source.splits["train"])


EXPECTED: Simple = {
    "a.jpg": [("dog", (3, 4, 10.5, 20)), ("cat", (0, 0, 10, 10))],
    "b.jpg": [("cat", (1, 2, 2, 2))],
}


def test_columns_of_tensorflow_and_roboflow(tmp_path: Path) -> None:
    source = read_csv(make(tmp_path, HEADER + ROWS, "_annotations.csv"))
    content = source.splits["train"]
    assert source.format == "csv"
    assert simple(content) == EXPECTED
    assert content.image_root == tmp_path
    assert [(c.id, c.name) for c in content.annotations.categories] == [(1, "cat"), (2, "dog")]
    assert [(i.id, i.width, i.height) for i in content.annotations.images] == [(1, 40, 30), (2, 40, 30)]
    assert [a.id for a in content.annotations.annotations] == [1, 2, 3]
    assert content.annotations.annotations[0].area == 210


def swapped(text: str, order: tuple[int, ...], separator: str = ",") -> str:
    lines = [line.split(",") for line in text.splitlines()]
    return "\n".join(separator.join(line[index] for index in order) for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(swapped(HEADER + ROWS, (7, 3, 4, 6, 5, 0, 2, 1)), id="order"),
        pytest.param((HEADER + ROWS).replace("\n", "\r\n"), id="crlf"),
        pytest.param((HEADER + ROWS).replace("\n", "\r"), id="cr"),
        pytest.param(("\ufeff" + HEADER + ROWS).encode(), id="bom"),
        pytest.param(swapped(HEADER + ROWS, tuple(range(8)), ";"), id="semicolon"),
        pytest.param(swapped(HEADER + ROWS, tuple(range(8)), "\t"), id="tab"),
        pytest.param("\n\n" + (HEADER + ROWS).replace("\n", "\n,,,,,,,\n"), id="empty-lines"),
        pytest.param(HEADER.upper() + ROWS, id="upper-case"),
        pytest.param("Image Path,Width,Height,Label_Name,X1,Y1,X2,Y2\n" + ROWS, id="synonyms"),
        pytest.param("file,image_width,image_height,label,x_min,y_min,x_max,y_max\n" + ROWS, id="underscores"),
        pytest.param(swapped(HEADER + ROWS, (0, 3, 4, 5, 6, 7)), id="without-size"),
        pytest.param(HEADER + ROWS.replace("40,30", ","), id="empty-size"),
        pytest.param(HEADER + ROWS.replace("40,30", "0,0"), id="size-0"),
        pytest.param(HEADER + ROWS.replace("40,30", "40.0, 30"), id="size-as-fraction"),
        pytest.param(HEADER + ROWS.replace("b.jpg", "./b.jpg"), id="dot"),
        pytest.param(HEADER.strip() + ",notes\n" + ROWS.replace("\n", ",\n"), id="another-column"),
        pytest.param(HEADER + ROWS.replace("\n", ",,\n"), id="trailing-separators"),
        pytest.param(HEADER + '"a.jpg",40,30, dog ,3,"4",13.5,24\n' + ROWS.partition("\n")[2], id="quotes"),
    ],
)
def test_other_ways_to_write_it(tmp_path: Path, text: str | bytes) -> None:
    assert train(make(tmp_path, text)) == EXPECTED


@pytest.mark.parametrize(
    "header",
    [
        "filename,class,x,y,w,h",
        "image,label,left,top,width,height",
        "path,label_name,bbox_x,bbox_y,bbox_width,bbox_height",
        "filename,class,xmin,ymin,width,height",
    ],
)
def test_left_top_width_height(tmp_path: Path, header: str) -> None:
    text = header + "\na.jpg,dog,3,4,10.5,20\na.jpg,cat,0,0,10,10\nb.jpg,cat,1,2,2,2\n"
    assert train(make(tmp_path, text)) == EXPECTED


def test_box_and_image_may_both_have_a_width(tmp_path: Path) -> None:
    text = "filename,class,x,y,w,h,width,height\na.jpg,dog,3,4,10.5,20,40,30\n"
    assert train(make(tmp_path, text)) == {"a.jpg": [("dog", (3, 4, 10.5, 20))]}


RETINANET = "a.jpg,3,4,13.5,24,dog\na.jpg,0,0,10,10,cat\nb.jpg,1,2,3,4,cat\n"


@pytest.mark.parametrize("separator", [",", ";"])
def test_retinanet(tmp_path: Path, separator: str) -> None:
    assert train(make(tmp_path, RETINANET.replace(",", separator))) == EXPECTED


def test_f12_retinanet_row_without_a_box_is_a_negative(tmp_path: Path) -> None:
    root = make(tmp_path, "b.jpg,,,,,\n" + RETINANET.replace("b.jpg,1,2,3,4,cat\n", ""))
    content = read_csv(root).splits["train"]
    assert simple(content) == {"b.jpg": [], "a.jpg": EXPECTED["a.jpg"]}
    assert content.findings.images_without_objects == 1


def test_f12_empty_box_under_a_header_is_a_negative(tmp_path: Path) -> None:
    assert train(make(tmp_path, HEADER + "b.jpg,40,30,,,,,\n" + "a.jpg,40,30,cat,0,0,10,10\n"))["b.jpg"] == []


@pytest.mark.parametrize("first", ["\ufeff", "label,,,,,\n"], ids=["bom", "word"])
def test_retinanet_begins_with_what_is_no_header(tmp_path: Path, first: str) -> None:
    root = make(tmp_path, first + RETINANET, images="a.jpg b.jpg label.jpg")
    (root / "label.jpg").rename(root / "label")
    assert {name: boxes for name, boxes in train(root).items() if boxes} == EXPECTED


def test_words_of_a_header_in_a_retinanet_row(tmp_path: Path) -> None:
    text = "a.jpg,0,0,10,10,left\nlabel,1,2,3,4,class\n"
    root = make(tmp_path, text)
    (root / "b.jpg").rename(root / "label")
    assert train(root) == {"a.jpg": [("left", (0, 0, 10, 10))], "label": [("class", (1, 2, 2, 2))]}


@pytest.mark.parametrize("name", ["classes.csv", "class_map.csv"])
@pytest.mark.parametrize("names_of_columns", ["", "name,id\n"])
def test_class_file_gives_the_ids(tmp_path: Path, name: str, names_of_columns: str) -> None:
    root = make(tmp_path, RETINANET)
    (root / name).write_text(names_of_columns + "dog,0\nbird,7\ncat,3\n")
    content = read_csv(root).splits["train"]
    assert [(c.id, c.name) for c in content.annotations.categories] == [(0, "dog"), (7, "bird"), (3, "cat")]
    assert simple(content) == EXPECTED
    assert content.findings.classes_without_instances == ("bird",)


@pytest.mark.parametrize(
    ("text", "line", "code"),
    [
        ("dog,0\ncat\n", 2, "F16"),
        ("dog,0\ncat,one\n", 2, "F16"),
        ("dog,0\ncat,0\n", 2, "F16"),
        ("dog,99999999999999999999\n", 1, "F16"),
        ("dog,0\ndog,1\n", 2, "F17"),
        ("dog,0\n,1\n", 2, "F17"),
    ],
)
def test_faulty_class_file(tmp_path: Path, text: str, line: int, code: str) -> None:
    root = make(tmp_path, RETINANET)
    (root / "classes.csv").write_text(text)
    with pytest.raises(DataError) as raised:
        read_csv(root)
    assert raised.value.where == f"{root / 'classes.csv'}:{line}"
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train.csv", "val.csv", "test.csv"), ["train", "val", "test"]),
        (("train_annotations.csv", "valid_annotations.csv"), ["train", "val"]),
        (("train_labels.csv", "test_labels.csv"), ["train", "test"]),
        (("anything.csv",), ["train"]),
        (("anything.tsv",), ["train"]),
    ],
)
def test_files_of_the_splits(tmp_path: Path, names: tuple[str, ...], splits: list[str]) -> None:
    rows = ["a.jpg,3,4,13,24,dog\n", "b.jpg,1,2,3,4,cat\n", "c.jpg,,,,,\n"]
    for name, row in zip(names, rows, strict=False):
        make(tmp_path, row, name, "a.jpg b.jpg c.jpg")
    assert is_csv(tmp_path)
    source = read_csv(tmp_path)
    assert list(source.splits) == splits
    ids = [image.id for content in source.splits.values() for image in content.annotations.images]
    assert ids == list(range(1, len(splits) + 1))
    classes = {content.annotations.categories for content in source.splits.values()}
    assert len(classes) == 1


def test_a_file_by_its_name(tmp_path: Path) -> None:
    root = make(tmp_path, RETINANET, "val.csv")
    make(tmp_path, "c.jpg,1,1,2,2,dog\n", "train.csv")
    assert is_csv(root / "val.csv")
    assert train(root / "val.csv") == EXPECTED


@pytest.mark.parametrize("folder", ["images", "train", "images/train", "."])
@pytest.mark.parametrize("written_with_folder", [False, True])
def test_where_images_are_looked_for(tmp_path: Path, folder: str, written_with_folder: bool) -> None:
    prefix = f"{folder}/" if written_with_folder else ""
    text = RETINANET.replace("a.jpg", f"{prefix}a.jpg").replace("b.jpg", f"{prefix}b.jpg")
    root = make(tmp_path, text, images=f"{folder}/a.jpg {folder}/b.jpg")
    content = read_csv(root).splits["train"]
    for image in content.annotations.images:
        assert (content.image_root / image.file_name).is_file()
    assert list(simple(content).values()) == list(EXPECTED.values())


def test_absolute_names_within_the_source_and_backslashes(tmp_path: Path) -> None:
    text = RETINANET.replace("a.jpg", f"{tmp_path}/x/a.jpg").replace("b.jpg", "x\\b.jpg")
    root = make(tmp_path, text, images="x/a.jpg x/b.jpg")
    assert list(train(root)) == ["x/a.jpg", "x/b.jpg"]


def test_names_with_commas_quotes_spaces_and_unicode(tmp_path: Path) -> None:
    root = make(tmp_path, "".join(f'"{name}",1,2,3,4,"{name}"\n' for name in ('a, ""b"".jpg', " größe 犬.jpg")))
    for name in ('a, "b".jpg', " größe 犬.jpg"):
        Image.new("RGB", (40, 30)).save(root / name)
    assert {name: boxes[0][0] for name, boxes in train(root).items()} == {
        'a, "b".jpg': 'a, "b".jpg',
        " größe 犬.jpg": "größe 犬.jpg",
    }


@pytest.mark.parametrize("header", ["", "file,x1,y1,x2,y2,class\n", "file,x,y,w,h,class\n"])
def test_edges_that_count_from_one(tmp_path: Path, header: str) -> None:
    root = make(tmp_path, header + "a.jpg,1,1,9,9,cat\n")
    size = 9 if ",w," in header else 8
    assert train(root, ReadOptions(one_based=True)) == {"a.jpg": [("cat", (0, 0, size, size))]}


def test_f08_zero_size_boxes_are_dropped_and_counted(tmp_path: Path) -> None:
    content = read_csv(make(tmp_path, RETINANET + "b.jpg,5,5,5,9,ant\nb.jpg,5,5,9,5,ant\n")).splits["train"]
    assert content.findings.zero_size_boxes == 2
    assert simple(content) == EXPECTED
    assert {c.name for c in content.annotations.categories} == {"cat", "dog"}


def test_f10_boxes_that_reach_over_the_edge_stay(tmp_path: Path) -> None:
    content = read_csv(make(tmp_path, RETINANET + "b.jpg,-5,5,5,31,dog\n")).splits["train"]
    assert content.findings.partly_outside_boxes == 1
    assert simple(content)["b.jpg"][1] == ("dog", (-5, 5, 10, 26))


FAULTS = [
    pytest.param(HEADER + "a.jpg,40,30,dog,3,4,13\n", 2, "F02", "has 7 fields, not 8", id="F02-short"),
    pytest.param(HEADER + "a,b.jpg,40,30,dog,3,4,13,24\n", 2, "F02", "has 9 fields, not 8", id="F02-comma"),
    pytest.param(HEADER + ",40,30,dog,3,4,13,24\n", 2, "F02", "file name is missing", id="F02-name"),
    pytest.param(HEADER + "a.jpg,40,30,dog,3,,13,24\n", 2, "F02", "ymin is missing", id="F02-edge"),
    pytest.param(HEADER + "a.jpg,40,,dog,3,4,13,24\n", 2, "F02", "height is missing", id="F02-height"),
    pytest.param(HEADER + "a.jpg,40.5,30,dog,3,4,13,24\n", 2, "F02", "40.5 x 30", id="F02-size"),
    pytest.param(HEADER + "a.jpg,-40,30,dog,3,4,13,24\n", 2, "F02", "-40 x 30", id="F02-negative-size"),
    pytest.param(HEADER + "a.jpg,wide,30,dog,3,4,13,24\n", 2, "F09", "width must be .* 'wide'", id="F09-size"),
    pytest.param(HEADER + "a.jpg,40,30,dog,13,4,3,24\n", 2, "F08", "negative.*13, 4, 3, 24", id="F08"),
    pytest.param("a.jpg,3,4,nan,24,dog\n", 1, "F09", "xmax must be a finite number, is 'nan'", id="F09-nan"),
    pytest.param("a.jpg,3,4,13,1e999,dog\n", 1, "F09", "ymax must be a finite number", id="F09-inf"),
    pytest.param("a.jpg,3,four,13,24,dog\n", 1, "F09", "'four'", id="F09-text"),
    pytest.param("b.jpg,1,2,3,4,dog\na.jpg,40,4,43,24,dog\n", 2, "F10", "wholly outside.*40 x 30", id="F10"),
    pytest.param("a.jpg,3,4,13,24,\n", 1, "F17", "class name is missing", id="F17"),
    pytest.param("b.jpg,1,2,3,4,dog\nc.jpg,3,4,13,24,dog\n", None, "F19", "missing", id="F19"),
    pytest.param(HEADER + ROWS + "b.jpg,30,40,cat,1,2,3,4\n", 5, "F25", "another size of 'b.jpg'", id="F25-rows"),
    pytest.param(
        HEADER + "a.jpg,20,15,dog,30,20,39,29\n", None, "F25", "has 40 x 30 pixels.*says 20 x 15", id="F25-file"
    ),
    pytest.param(HEADER + "a.jpg,40000,30000,dog,3,4,13,24\n", 2, "F26", "40000 x 30000 pixels are more", id="F26"),
    pytest.param("b.jpg,1,2,3,4,dog\n../a.jpg,3,4,13,24,dog\n", 2, "F31", "escapes image root", id="F31-parent"),
    pytest.param("/etc/a.jpg,3,4,13,24,dog\n", 1, "F31", "escapes image root", id="F31-absolute"),
    pytest.param("C:\\a.jpg,3,4,13,24,dog\n", 1, "F31", "escapes image root", id="F31-drive"),
    pytest.param("link.jpg,3,4,13,24,dog\n", 1, "F31", "by a link", id="F31-link"),
]


def fault_tree(tmp_path: Path, text: str) -> Path:
    root = make(tmp_path / "root", text)
    make(tmp_path, "", "unrelated", "outside.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    return root


@pytest.mark.parametrize(("text", "line", "code", "message"), FAULTS)
def test_refuses(tmp_path: Path, text: str, line: int | None, code: str, message: str) -> None:
    root = fault_tree(tmp_path, text)
    with pytest.raises(DataError, match=message) as raised:
        read_csv(root)
    assert raised.value.code == code
    if line is not None:
        assert raised.value.where == f"{root / 'annotations.csv'}:{line}"


@pytest.mark.parametrize(("text", "line", "code", "message"), FAULTS)
def test_goes_on_without_it(tmp_path: Path, text: str, line: int | None, code: str, message: str) -> None:
    good = "good.jpg,40,30,dog,3,4,13,24\n" if text.startswith(HEADER) else "good.jpg,3,4,13,24,dog\n"
    root = fault_tree(tmp_path, text + good)
    Image.new("RGB", (40, 30)).save(root / "good.jpg")
    log = FaultLog(drops=True)
    content = read_csv(root, log=log).splits["train"]
    assert [(fault.code, fault.count) for fault in log.faults] == [(code, 1)]
    assert simple(content)["good.jpg"] == [("dog", (3, 4, 10, 20))]


def test_f10_boxes_outside_are_left_out(tmp_path: Path) -> None:
    content = read_csv(make(tmp_path, RETINANET + "b.jpg,40,1,44,9,cat\n"), log=FaultLog(drops=True)).splits["train"]
    assert simple(content) == EXPECTED


def test_f31_link_that_leads_out_of_the_folder_of_images(tmp_path: Path) -> None:
    root = make(tmp_path / "root", "a.jpg,3,4,13,24,dog\nlink.jpg,3,4,13,24,dog\n", images="images/a.jpg")
    make(tmp_path, "", "unrelated", "outside.jpg")
    (root / "images" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(DataError, match="by a link") as raised:
        read_csv(root)
    assert raised.value.where == f"{root / 'annotations.csv'}:2"


def test_f19_all_missing_images_are_named(tmp_path: Path) -> None:
    root = make(tmp_path, RETINANET, images="x.jpg")
    with pytest.raises(DataError, match=r"2 of 2 listed images are missing: a\.jpg, b\.jpg") as raised:
        read_csv(root)
    assert raised.value.places == (str(root / "a.jpg"), str(root / "b.jpg"))


def test_f07_classes_that_the_class_file_lacks(tmp_path: Path) -> None:
    root = make(tmp_path, RETINANET)
    (root / "classes.csv").write_text("dog,0\n")
    with pytest.raises(DataError, match=r"classes\.csv does not list: 'cat' \(2 such: lines 2, 3\)") as raised:
        read_csv(root)
    assert raised.value.code == "F07"
    assert raised.value.places == tuple(f"{root / 'annotations.csv'}:{line}" for line in (2, 3))
    log = FaultLog(drops=True)
    read_csv(root, log=log)
    assert [(fault.code, fault.count) for fault in log.faults] == [("F07", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RETINANET.replace("3,4,13.5,24", ".1,.2,.3,.4").replace("0,0,10,10", "0,0,1,1").replace("1,2,3,4", "0,0,.5,1"),
         "normalised"),
        ("a.jpg,20,15,9,9,dog\n" * 3 + RETINANET, "like left, top, width, height"),
        ("file,class,x,y,w,h\n" + "a.jpg,dog,20,15,39,29\n" * 4, "like edges"),
    ],
    ids=["normalised", "extents", "edges"],
)  # fmt: skip
@pytest.mark.parametrize("drops", [False, True])
def test_f11_numbers_in_another_format(tmp_path: Path, text: str, message: str, drops: bool) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_csv(make(tmp_path, text), log=FaultLog(drops=drops))
    assert raised.value.code == "F11"
    assert "annotations.csv:" in str(raised.value.where)


@pytest.mark.parametrize(
    ("text", "code", "parts"),
    [
        pytest.param("filename,label,points\na.jpg,dog,1\n", "F02", ["xmin, ymin", "filename, label"], id="no-box"),
        pytest.param("image_id,x1,y1,x2,y2\na,1,2,3,4\n", "F02", ["filename, class", "image_id, x1"], id="no-names"),
        pytest.param("a,b,c,d,e,f\n1,2,3,4,5,6\n", "F02", ["neither", "a, b, c, d, e, f"], id="other-table"),
        pytest.param("a.jpg,1,2,3,4\n", "F02", ["neither", "a.jpg, 1"], id="five-fields"),
        pytest.param("", "F02", ["no rows"], id="empty"),
        pytest.param("\n,,,\n", "F02", ["no rows"], id="only-separators"),
        pytest.param(HEADER, "F13", ["no row has a box"], id="only-a-header"),
        pytest.param("a.jpg,,,,,\n", "F13", ["no row has a box"], id="only-negatives"),
        pytest.param(HEADER.encode() + b"\xff.jpg,1,2\n", "F01", ["annotations.csv:2", "UTF-8"], id="latin-1"),
        pytest.param((HEADER + ROWS).encode("utf-16"), "F01", ["UTF-8"], id="utf-16"),
        pytest.param(HEADER + "a\0.jpg,40,30,dog,1,2,3,4\n", "F01", ["NUL"], id="nul"),
        pytest.param(HEADER + '"a.jpg,40,30,dog,1,2,3,4\n', "F01", ["annotations.csv:2", "quotation"], id="open-quote"),
        pytest.param(HEADER + "a" * 200_000, "F01", ["annotations.csv:2", "limit"], id="endless-field"),
    ],
)
def test_whole_file_that_cannot_be_read(tmp_path: Path, text: str | bytes, code: str, parts: list[str]) -> None:
    with pytest.raises(DataError) as raised:
        read_csv(make(tmp_path, text), log=FaultLog(drops=True))
    assert raised.value.code == code
    for part in parts:
        assert part in f"{raised.value} {raised.value.hint}"


def test_folders_without_tables(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "classes.csv").write_text("dog,0\n")
    assert not is_csv(tmp_path)
    assert not is_csv(tmp_path / "missing")
    with pytest.raises(DataError, match="no CSV file found"):
        read_csv(tmp_path)
    make(tmp_path, HEADER, "one.csv", "")
    assert is_csv(tmp_path)
    make(tmp_path, HEADER, "two.csv", "")
    assert not is_csv(tmp_path)


CELLS = st.sampled_from(["a.jpg", "b.jpg", "dog", "1", "2.5", "39", "-1", "nan", "", "0", "../a", '"', "é", "x" * 300])
NUMBERS = st.sampled_from(["0", "1", "2.5", "10", "1e1", "39", "-1", "41"])
LIKELY = st.tuples(st.sampled_from(["a.jpg", "b.jpg"]), *[NUMBERS] * 4, st.sampled_from(["dog", "cat"]))
ANYTHING = st.lists(CELLS, min_size=4, max_size=9)
TABLES = st.lists((LIKELY | LIKELY | ANYTHING).map(",".join), max_size=6).map("\n".join)
HEADERS = st.sampled_from(["", "", HEADER, "file,x,y,w,h,label\n", "file,x1,y1,x2,y2,label\n"])
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.builds(str.__add__, HEADERS, TABLES).map(str.encode),
    st.builds(str.__add__, HEADERS, TABLES).map(str.encode),
)
CLASSES = st.none() | st.sampled_from([b"dog,0\ncat,1\n", b"dog,7\n"]) | CONTENTS


@given(content=CONTENTS, classes=CLASSES, drops=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_bytes_give_a_source_or_a_data_error(content: bytes, classes: bytes | None, drops: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = make(Path(name), content)
        if classes is not None:
            (root / "classes.csv").write_bytes(classes)
        try:
            source = read_csv(root, log=FaultLog(drops=drops))
        except DataError:
            return
    (split,) = source.splits.values()
    assert len(split.annotations.by_image()) == len(split.annotations.images)
    assert (split.annotations.boxes_xywh_px[:, 2:] > 0).all()

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.annotations.coco import inspect_coco, write_coco
from core.annotations.faults import TITLES, FaultLog
from core.annotations.readers.yolo import is_yolo, read_yolo
from core.errors import DataError

from .yolo_sets import LINE, YAML, H, W, boxes_of, labelled, names_of, put, refused, ultralytics

PIXELS = "0 12 13 4 5\n0 20 22 8 8\n"
LINE_FAULTS = {
    "F03-predictions": ("F03", "0 0.5 0.5 0.25 0.2 0.91\n", ["b.txt:1", "6 columns", "predictions"]),
    "F07-text": ("F07", "cat 0.5 0.5 0.25 0.2\n", ["b.txt:1", "whole number", "'cat'"]),
    "F07-fraction": ("F07", "\n0.5 0.5 0.5 0.25 0.2\n", ["b.txt:2", "'0.5'"]),
    "F07-negative": ("F07", "-1 0.5 0.5 0.25 0.2\n", ["b.txt:1", "'-1'"]),
    "F07-nan": ("F07", "nan 0.5 0.5 0.25 0.2\n", ["b.txt:1", "'nan'"]),
    "F07-unknown": (
        "F07",
        "0 0.5 0.5 0.1 0.1\n2 0.5 0.5 0.25 0.2\n3 0.5 0.5 0.1 0.1\n",
        ["b.txt:2", "2 has no name", "2 such"],
    ),
    "F08-negative": ("F08", "0 0.5 0.5 0.25 -0.2\n", ["b.txt:1", "negative", "0.25 -0.2"]),
    "F09-three": ("F09", "0 0.5 0.5 0.25\n", ["b.txt:1", "4 columns"]),
    "F09-even": ("F09", "0 0.5 0.5 0.25 0.2 0.3 0.3 0.1\n", ["b.txt:1", "8 columns"]),
    "F09-commas": ("F09", "0,0.5,0.5,0.25,0.2\n", ["b.txt:1", "1 columns"]),
    "F09-text": ("F09", "0 0.5 half 0.25 0.2\n", ["b.txt:1", "'half'"]),
    "F09-nan": ("F09", "0 0.5 0.5 nan 0.2\n", ["b.txt:1", "'nan'"]),
    "F09-inf": ("F09", "0 0.5 0.5 0.5 1e999\n", ["b.txt:1", "'1e999'"]),
    "F10-beyond": ("F10", "0 0.5 1.02 0.25 0.2\n", ["b.txt:1", "1.02", "outside"]),
    "F10-below": ("F10", "0 -0.02 0.5 0.25 0.2\n", ["b.txt:1", "-0.02", "outside"]),
    "F10-border": ("F10", "0 1 0.5 0.000000001 0.2\n", ["b.txt:1", "wholly outside"]),
    "F10-outside": ("F10", "0 1.005 0.5 0.001 0.2\n", ["b.txt:1", "wholly outside"]),
    "F11-pixels": ("F11", PIXELS + PIXELS, ["b.txt:1", "pixels", "4 of 6"]),
    "F01-latin": ("F01", b"0 0.5 0.5 0.25 0.2 \xff\n", ["b.txt", "UTF-8"]),
}


@pytest.mark.parametrize(("code", "line", "parts"), LINE_FAULTS.values(), ids=LINE_FAULTS)
def test_refuses_lines(tmp_path: Path, code: str, line: str | bytes, parts: list[str]) -> None:
    root = ultralytics(tmp_path)
    put(root, {"labels/train/b.txt": line})
    refused(root, code, *parts)


@pytest.mark.parametrize("case", [case for case in LINE_FAULTS if "F11" not in case])
def test_drops_lines(tmp_path: Path, case: str) -> None:
    code, line, _ = LINE_FAULTS[case]
    root = ultralytics(tmp_path)
    put(root, {"labels/train/b.txt": line})
    log = FaultLog(drops=True)
    source = read_yolo(root, log=log)
    assert [fault.code for fault in log.faults] == [code]
    # What makes a whole label file unusable takes its image along: it is no negative.
    kept = {"a.png": 1} if code in ("F01", "F03") else {"a.png": 1, "b.png": 1 if "unknown" in case else 0}
    assert {name: len(boxes) for name, boxes in boxes_of(source).items()} == kept


def test_f11_edges(tmp_path: Path) -> None:
    edges = "0 0.1 0.2 0.3 0.4\n1 0.7 0.1 0.9 0.3\n0 0.2 0.6 0.4 0.9\n0 0.6 0.6 0.8 0.9\n"
    files = {**labelled("images/a", line=edges), "data.yaml": "train: images\nnames: [a, b]\n"}
    refused(put(tmp_path, files), "F11", "a.txt:1", "edges x1, y1, x2, y2", "3 of 4")


def test_lines_of_many_files_are_one_fault(tmp_path: Path) -> None:
    root = ultralytics(tmp_path)
    for index in range(7):
        put(root, labelled(f"images/train/c{index}", line="5 0.5 0.5 0.1 0.1"))
    error = refused(root, "F07", "c0.txt:1", "7 such", "c4.txt:1, ...")
    assert len(error.places) == 7


DESCRIPTIONS = {
    "F01-cut": ("F01", "names: [cat\ntrain: images", ["data.yaml:2", "not valid YAML"]),
    "F01-empty": ("F01", "# names\n", ["data.yaml", "empty"]),
    "F01-latin": ("F01", b"names: [\xe9]\n", ["data.yaml", "UTF-8"]),
    "F01-nul": ("F01", "names: [a\0]\ntrain: images", ["data.yaml", "not valid YAML"]),
    "F01-deep": ("F01", "names: " + "[" * 600, ["data.yaml", "not valid YAML"]),
    "F01-list": ("F01", "- a\n- names: 3\n", ["data.yaml", "must have keys"]),
    "F01-key": ("F01", "? [a]\n: 3\nnames: [a]\n", ["data.yaml:1", "key must be a word"]),
    "F01-long": ("F01", "names: [cat]\n#" + "x" * (1 << 20), ["data.yaml", "too long"]),
    "F34-python": ("F01", "names: !!python/object/apply:os.system [touch canary]\n", ["data.yaml:1", "python"]),
    "F34-elsewhere": ("F01", f"{YAML}x: [{{y: !run z}}]\n", ["data.yaml:4", "'!run'"]),
    "F77-twice": ("F01", f"{YAML}names: [ant]\n", ["data.yaml:4", "'names' stands twice"]),
    "F77-twice-inside": ("F01", "names: {0: cat, 0: dog}\ntrain: images", ["data.yaml:1", "'0' stands twice"]),
    "F77-tab": ("F01", "names:\n\t- cat\n", ["data.yaml:2", "not valid YAML"]),
    "F02-no-split": ("F02", "names: [cat]\n", ["data.yaml", "`train`"]),
    "F02-names-word": ("F02", "names: cat\ntrain: images\n", ["data.yaml:1", "list"]),
    "F02-nested": ("F02", "names: [[cat]]\ntrain: images\n", ["data.yaml:1", "lists in lists"]),
    "F02-train-mapping": ("F02", "names: [cat]\ntrain: {a: b}\n", ["data.yaml:2", "path"]),
    "F02-nc": ("F02", f"{YAML}nc: 3\n", ["data.yaml:4", "3 classes", "2 names"]),
    "F02-kpt": ("F02", f"{YAML}kpt_shape: 17\n", ["data.yaml:4", "kpt_shape"]),
    "F16-kpt": ("F16", f"{YAML}kpt_shape: [17, x]\n", ["data.yaml:4", "'x'"]),
    "F16-id": ("F16", "names: {a: cat}\ntrain: images\n", ["data.yaml:1", "'a'"]),
    "F16-id-twice": ("F16", "names: {0: cat, 00: dog}\ntrain: images\n", ["data.yaml:1", "two names"]),
    "F16-huge": ("F16", "nc: 999999999\ntrain: images\n", ["data.yaml:1", "999999999"]),
    "F17-empty": ("F17", "names: [cat, '']\ntrain: images\n", ["data.yaml:1", "class 1", "empty"]),
    "F17-null": ("F17", "names: [cat, ~]\ntrain: images\n", ["data.yaml:1", "class 1"]),
    "F17-none": ("F17", "names: []\ntrain: images\n", ["data.yaml:1", "no class names"]),
    "F17-twice": ("F17", "names: [cat, dog, cat]\ntrain: images\n", ["data.yaml:1", "'cat'", "0 and 2"]),
    "F17-surrogate": ("F17", 'names: ["\\ud800"]\ntrain: images\n', ["data.yaml:1", "Unicode"]),
    "F19-train": ("F19", "names: [cat]\ntrain: images/trian\n", ["data.yaml:2", "images/trian", "not there"]),
    "F19-val": ("F19", "names: [cat]\ntrain: images/train\nval: val/images\n", ["data.yaml:3", "val/images"]),
    "F29-empty": ("F29", "names: [cat]\ntrain: labels\n", ["labels", "no images"]),
    "F31-up": ("F31", "names: [cat]\ntrain: ../../elsewhere\n", ["data.yaml:2", "leads out"]),
    "F31-absolute": ("F31", "names: [cat]\ntrain: /etc/pictures\n", ["data.yaml:2", "leads out"]),
    "F31-nul": ("F31", 'names: [cat]\ntrain: "images\\0"\n', ["data.yaml:2", "leads out"]),
}


@pytest.mark.parametrize(("code", "description", "parts"), DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_refuses_descriptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, description: str | bytes, parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = ultralytics(tmp_path / "ds", description=description)
    (tmp_path / "elsewhere").mkdir()
    refused(root / "data.yaml", code, *parts)
    assert not (tmp_path / "canary").exists()


def test_aliases_that_would_grow_without_end(tmp_path: Path) -> None:
    bomb = "".join(f"k{i + 1}: &k{i + 1} {{a: *k{i}, b: *k{i}, <<: [*k{i}, *k{i}]}}\n" for i in range(60))
    source = read_yolo(ultralytics(tmp_path, description=f"{YAML}k0: &k0 {{x: y}}\n{bomb}"))
    assert names_of(source)["val"] == ["v.png"]


def test_several_descriptions(tmp_path: Path) -> None:
    root = ultralytics(tmp_path)
    (root / "data.yaml").rename(root / "a.yaml")
    put(root, {"b.yml": YAML, "dataset.yaml": "format_version: 1\nnames: [x]\n"})
    assert is_yolo(root)
    refused(root, "F02", "a.yaml, b.yml")
    assert len(read_yolo(root / "b.yml").splits) == 2


LIST_FAULTS = {
    "F04-twice": ("F04", "images/a.png\n./images/a.png\n", ["train.txt:2", "listed already", "train.txt:1"]),
    "F19-missing": ("F19", "images/a.png\nimages/x.png\nimages/y.png\n", ["train.txt:2", "images/x.png", "2 such"]),
    "F31-up": ("F31", "images/a.png\n../secret.png\n", ["train.txt:2", "leads out"]),
    "F31-absolute": ("F31", "images/a.png\n{outside}\n", ["train.txt:2", "leads out"]),
    "F31-link": ("F31", "images/a.png\nlink/secret.png\n", ["train.txt:2", "by a link"]),
    "F31-nul": ("F31", "images/a.png\nx\0.png\n", ["train.txt:2", "leads out"]),
    "F31-drive": ("F31", "images/a.png\nD:\\x\\secret.png\n", ["train.txt:2", "leads out"]),
    "F19-long": ("F19", "images/a.png\n" + "a/" * 9000 + "x.png\n", ["train.txt:2", "not there"]),
    "F19-deep": ("F19", "images/a.png\n" + "x/" * 100 + "images/a.png\n", ["train.txt:2", "not there"]),
    "F19-long-name": ("F19", "images/a.png\n" + "a" * 900 + ".png\n", ["train.txt:2", "not there"]),
    "F36-suffix": ("F36", "images/a.png\nimages/a.heic 1,2,3,4,0\n", ["train.txt:2", "a.heic"]),
}


@pytest.mark.parametrize(("code", "lines", "parts"), LIST_FAULTS.values(), ids=LIST_FAULTS)
def test_refuses_and_drops_lines_of_lists(tmp_path: Path, code: str, lines: str, parts: list[str]) -> None:
    outside = put(tmp_path, {"secret.png": "", "out/secret.png": ""}) / "secret.png"
    root = put(tmp_path / "ds", {**labelled("images/a"), "train.txt": lines.replace("{outside}", str(outside))})
    (root / "link").symlink_to(tmp_path / "out")
    refused(root, code, *parts)
    log = FaultLog(drops=True)
    assert names_of(read_yolo(root, log=log)) == {"train": ["a.png"]}
    assert [fault.code for fault in log.faults] == [code]


def test_f31_links_that_lead_out(tmp_path: Path) -> None:
    root = ultralytics(tmp_path / "ds")
    secret = put(tmp_path, {"secret.png": ""}) / "secret.png"
    (root / "images/train/c.png").symlink_to(secret)
    refused(root, "F31", "c.png", "by a link")


BROKEN = {
    "F20": (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, ("F20", "F22")),
    "F21": (b"", ("F21",)),
    "F22": (b"no image at all", ("F22",)),
    "F36": (b"%PDF-1.7 and so on", ("F36",)),
}


@pytest.mark.parametrize(("content", "codes"), BROKEN.values(), ids=BROKEN)
def test_broken_images(tmp_path: Path, content: bytes, codes: tuple[str, ...]) -> None:
    root = put(ultralytics(tmp_path), {"images/train/b.png": content})
    with pytest.raises(DataError, match=r"b\.png") as raised:
        read_yolo(root)
    assert raised.value.code in codes
    log = FaultLog(drops=True)
    assert names_of(read_yolo(root, log=log))["train"] == ["a.png"]
    assert log.faults[0].code == raised.value.code


def test_f13_no_boxes(tmp_path: Path) -> None:
    root = ultralytics(tmp_path)
    for name in ("train/a", "train/b", "val/v"):
        (root / "labels" / f"{name}.txt").write_text("\n")
    refused(root, "F13", "no image has a label file with a box")
    with pytest.raises(DataError) as raised:
        read_yolo(
            put(tmp_path / "x", {"data.yaml": "names: [a]\ntrain: images", "images/a.png": "", "label/a.txt": LINE})
        )
    assert raised.value.hint
    assert "labels/a.txt" in raised.value.hint


def test_names_of_classes_that_disagree(tmp_path: Path) -> None:
    files = {**labelled("train/a", "valid/v"), "train/_darknet.labels": "cat\n", "valid/_darknet.labels": "dog\n"}
    refused(put(tmp_path, files), "F28", "_darknet.labels", "differ")
    refused(put(tmp_path / "b", {**labelled("images/a"), "classes.txt": "cat\n\ndog\n"}), "F17", "class 1", "empty")
    many = {**labelled("a"), "obj.data": "classes = 3\n", "obj.names": "cat\n"}
    refused(put(tmp_path / "c", many), "F02", "obj.data:1", "3 classes")


def test_name_that_is_no_unicode(tmp_path: Path) -> None:
    root = ultralytics(tmp_path)
    try:
        Image.new("RGB", (W, H)).save(str(root / "images/train") + "/caf\udce9.png")
    except OSError:
        pytest.skip("this file system has Unicode names only")
    refused(root, "F02", "not valid Unicode").message.encode()


FEW = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def source_or_error(path: Path) -> None:
    """Read a set with and without dropping; what comes back must pass the checks of what is written."""
    for drops in (False, True):
        try:
            source = read_yolo(path, log=FaultLog(drops=drops))
        except DataError as error:
            if error.code in TITLES and error.where:
                continue
            raise
        for split, content in source.splits.items():
            image_names = [image.file_name for image in content.annotations.images]
            assert len(set(image_names)) == len(image_names) > 0
            if split == "train":
                write_coco(path / "out.json", content.annotations)
                again, _ = inspect_coco(path / "out.json", content.image_root)
                assert again.annotations == content.annotations.annotations


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ultralytics(tmp_path_factory.mktemp("set"))


WORDS = st.sampled_from(
    [b"0", b"1", b"0.5", b"1.0", b"-0.001", b"nan", b"1e999", b"300", b"0.25", b"1e-300", b"x", b"\xff"]
)
LABELS = st.one_of(
    st.binary(max_size=80),
    st.lists(st.lists(WORDS, max_size=8).map(b" ".join), max_size=6).map(b"\n".join),
    st.lists(st.lists(st.floats(-0.01, 1.01).map(lambda v: str(v).encode()), min_size=4, max_size=4), max_size=6).map(
        lambda rows: b"\n".join(b"0 " + b" ".join(row) for row in rows)
    ),
)


@given(content=LABELS)
@example(content=b"0 1e-300 0.5 1e-300 0.5")
@FEW
def test_fuzz_label_files(small_set: Path, content: bytes) -> None:
    source_or_error(put(small_set, {"labels/train/b.txt": content, "data.yaml": YAML}))


PIECES = st.sampled_from(
    b"names|train|val|path|nc|kpt_shape|: |\n|- |[|]|{|}|, |cat|images/train|0|1|..|/|!!python/none |&a |*a|\t|  |'"
    b'|"|\xc3\xa9|\xff|~|>\n'.split(b"|")
)
YAMLS = st.one_of(
    st.binary(max_size=60).map(lambda b: b"names: [a]\ntrain: " + b),
    st.lists(PIECES, max_size=25).map(b"".join),
    st.builds(lambda at, new: YAML.encode()[:at] + new + YAML.encode()[at:], st.integers(0, len(YAML)), PIECES),
)


@given(content=YAMLS)
@FEW
def test_fuzz_data_yaml(small_set: Path, content: bytes) -> None:
    source_or_error(put(small_set, {"labels/train/b.txt": LINE, "data.yaml": content}))


PATH_PIECES = st.sampled_from(["../", "/", "images", "train/", "a", ".png", "\n", "\0", "\\", "C:", " "])
LISTS = st.one_of(st.binary(max_size=60), st.lists(PATH_PIECES, max_size=15).map(lambda words: "".join(words).encode()))


@given(content=LISTS)
@FEW
def test_fuzz_lists(small_set: Path, content: bytes) -> None:
    files = {"data.yaml": "names: [a]\ntrain: list.txt\n", "list.txt": b"images/train/a.png\n" + content}
    source_or_error(put(small_set, {"labels/train/b.txt": LINE, **files}))

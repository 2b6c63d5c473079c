from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from core.annotations.content import ReadOptions, Source
from core.annotations.faults import FaultLog
from core.annotations.layouts import find_layout
from core.annotations.prepared import open_dataset
from core.annotations.readers.cityscapes import is_cityscapes, read_cityscapes
from core.annotations.readers.table import read_source
from core.errors import DataError, UsageError

from .conftest import all_bytes, coco_dict, write_json

SIZE = (64, 48)
OBJECT_NUMBERS = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "caravan": 29, "trailer": 30}
OBJECT_NUMBERS |= {"train": 31, "motorcycle": 32, "bicycle": 33}
OTHER_NUMBERS = {"road": 7, "pole": 17, "polegroup": 18, "sky": 23}
IDS = {"person": 1, "car": 2, "train": 3, "rider": 4, "truck": 5, "motorcycle": 6, "bicycle": 7, "bus": 8}

Box = tuple[int, int, int, int]
Thing = tuple[str, Box]
"""A label and left, top, width, height in pixels of a rectangle."""
Found = tuple[str, tuple[float, ...], float, bool]

# Two cities, and an image each in val; what is later hides what is earlier.
THINGS: dict[str, list[Thing]] = {
    "train/aachen/aachen_000000_000019": [
        ("road", (0, 20, 64, 28)),
        ("car", (3, 21, 20, 10)),
        ("person", (30, 5, 6, 30)),
        ("cargroup", (40, 30, 8, 5)),
        ("cargroup", (52, 30, 8, 5)),
        ("license plate", (5, 24, 4, 2)),
        ("rider", (1, 1, 1, 1)),
    ],
    "train/bochum/bochum_000000_000001": [
        *((name, (2 + 6 * index, 3, 5, 7 + index)) for index, name in enumerate(IDS)),
        ("caravan", (3, 30, 5, 5)),
        ("polegroup", (60, 0, 4, 48)),
        ("car", (40, 30, 9, 9)),
    ],
    "train/bochum/bochum_000000_000002": [("sky", (0, 0, 64, 9))],
    "val/lindau/lindau_000000_000003": [("train", (0, 0, 64, 48)), ("bicyclegroup", (5, 5, 5, 5))],
}
BOXES: dict[str, list[Found]] = {
    "aachen/aachen_000000_000019_leftImg8bit.png": [
        ("car", (3, 21, 20, 10), 200, False),
        ("car", (40, 30, 8, 5), 40, True),
        ("car", (52, 30, 8, 5), 40, True),
        ("person", (30, 5, 6, 30), 180, False),
        ("rider", (1, 1, 1, 1), 1, False),
    ],
    "bochum/bochum_000000_000001_leftImg8bit.png": sorted(
        [(name, (2 + 6 * index, 3, 5, 7 + index), 5 * (7 + index), False) for index, name in enumerate(IDS)]
        + [("car", (40, 30, 9, 9), 81, False)]
    ),
    "bochum/bochum_000000_000002_leftImg8bit.png": [],
    "lindau/lindau_000000_000003_leftImg8bit.png": [
        ("bicycle", (5, 5, 5, 5), 25, True),
        ("train", (0, 0, 64, 48), 64 * 48 - 25, False),
    ],
}


def polygons_of(things: Sequence[Thing]) -> dict[str, Any]:
    objects = [
        {"label": name, "polygon": [[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]]}
        for name, (x, y, w, h) in things
    ]
    return {"imgWidth": SIZE[0], "imgHeight": SIZE[1], "objects": objects}


def numbers_of(things: Sequence[Thing]) -> np.ndarray[Any, Any]:
    numbers = np.zeros(SIZE[::-1], np.uint16)
    counts: Counter[str] = Counter()
    for name, (x, y, w, h) in things:
        if name == "license plate":
            continue
        number = OTHER_NUMBERS.get(name) or OBJECT_NUMBERS[name.removesuffix("group")]
        if name in OBJECT_NUMBERS:
            number = 1000 * number + counts[name]
            counts[name] += 1
        numbers[y : y + h, x : x + w] = number
    return numbers


def make_tree(
    root: Path, things: Mapping[str, Sequence[Thing]] = THINGS, *, polygons: bool = True, instances: bool = True
) -> Path:
    for index, (stem, content) in enumerate(things.items()):
        picture, labels = root / "leftImg8bit" / f"{stem}_leftImg8bit.png", root / "gtFine" / f"{stem}_gtFine"
        for path in (picture, labels):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (index, 90, 90)).save(picture)
        if polygons:
            write_json(Path(f"{labels}_polygons.json"), polygons_of(content))
        if instances:
            Image.fromarray(numbers_of(content)).save(f"{labels}_instanceIds.png")
    return root


def boxes_of(source: Source) -> dict[str, list[Found]]:
    found: dict[str, list[Found]] = {}
    for content in source.splits.values():
        names = {category.id: category.name for category in content.annotations.categories}
        by_image = content.annotations.by_image()
        for image in content.annotations.images:
            found[image.file_name] = sorted(
                (names[one.category_id], one.box_xywh_px, one.area, one.is_crowd) for one in by_image[image.id]
            )
    return found


@pytest.mark.parametrize("sources", [("polygons",), ("instances",), ("polygons", "instances")])
def test_known_boxes_come_back_exactly(tmp_path: Path, sources: tuple[str, ...]) -> None:
    root = make_tree(tmp_path, polygons="polygons" in sources, instances="instances" in sources)
    assert is_cityscapes(root)
    source = read_cityscapes(root)
    assert boxes_of(source) == BOXES
    assert (source.format, list(source.splits)) == ("cityscapes", ["train", "val"])
    for split, content in source.splits.items():
        assert {category.name: category.id for category in content.annotations.categories} == IDS
        assert content.image_root == root / "leftImg8bit" / split
        assert all((image.width, image.height) == SIZE for image in content.annotations.images)
    images = [image for content in source.splits.values() for image in content.annotations.images]
    assert [image.id for image in images] == [1, 2, 3, 4]
    assert source.splits["train"].findings.images_without_objects == 1
    assert source.splits["train"].findings.crowd_boxes == 2


def test_notes_say_what_was_read(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    (root / "gtFine" / "train" / "bochum" / "bochum_000000_000001_gtFine_instanceIds.png").unlink()
    (root / "gtFine" / "test" / "berlin").mkdir(parents=True)
    notes = "\n".join(read_cityscapes(root).notes)
    assert "instance images (3) and polygons (1)" in notes
    assert "instance images are taken" in notes
    assert "test split was left out" in notes
    only_polygons = "\n".join(read_cityscapes(make_tree(tmp_path / "other", instances=False)).notes)
    assert "made from polygons (4)" in only_polygons
    assert not any(word in only_polygons for word in ("instance images", "visible pixel", "test split"))


def test_instance_images_are_preferred(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    for path in root.rglob("*_polygons.json"):
        path.write_text("not read")
    assert boxes_of(read_cityscapes(root)) == BOXES


STEM = "train/aachen/aachen_000000_000019"
NAME = "aachen/aachen_000000_000019_leftImg8bit.png"


@pytest.mark.parametrize("polygons", [True, False], ids=["polygons", "instance-image"])
def test_boxes_are_of_the_visible_part(tmp_path: Path, polygons: bool) -> None:
    things: list[Thing] = [
        ("car", (10, 10, 30, 20)),
        ("pole", (30, 0, 3, 48)),  # cuts the car in two: still one box
        ("truck", (33, 5, 20, 30)),  # hides all on its right
        ("bus", (50, 40, 4, 4)),
        ("person", (50, 40, 5, 5)),  # hides the bus altogether
        ("persongroup", (2, 40, 9, 3)),
        ("pole", (6, 30, 1, 18)),  # cuts the group: two crowds
        ("cargroup", (56, 20, 2, 2)),
        ("cargroup", (58, 22, 2, 2)),  # touches it by a corner: one crowd
    ]
    source = read_cityscapes(make_tree(tmp_path, {STEM: things}, polygons=polygons, instances=not polygons))
    assert boxes_of(source)[NAME] == [
        ("car", (10, 10, 20, 20), 400, False),
        ("car", (56, 20, 4, 4), 8, True),
        ("person", (2, 40, 4, 3), 12, True),
        ("person", (7, 40, 4, 3), 12, True),
        ("person", (50, 40, 5, 5), 25, False),
        ("truck", (33, 5, 20, 30), 600, False),
    ]
    # Of an instance image nobody can tell that something is behind.
    assert ("objects without a visible pixel, left out: 1" in source.notes) == polygons


def with_objects(root: Path, *objects: Any) -> Path:
    """A tree of one picture with these polygons."""
    make_tree(root, {STEM: []}, instances=False)
    content = {**polygons_of([]), "objects": list(objects)}
    write_json(root / "gtFine" / f"{STEM}_gtFine_polygons.json", content)
    return root


def test_deleted_and_cut_objects(tmp_path: Path) -> None:
    corners = [[10, 10], [20, 10], [20, 20]]
    root = with_objects(
        tmp_path,
        {"label": "car", "polygon": corners, "deleted": 1},
        {"label": "bus", "polygon": [[-30, 5], [9, 5], [9, 90], [-30, 90]], "deleted": 0, "verified": 1},
        {"label": "person", "polygon": [[12.4, 7.2], [15.1, 7.2], [15.1, 9.4], [12.4, 9.4]]},
        {"label": "bicycle", "polygon": [[40, 40], [45, 40]]},
    )
    assert boxes_of(read_cityscapes(root))[NAME] == [
        ("bicycle", (40, 40, 6, 1), 6, False),
        ("bus", (0, 5, 10, 43), 430, False),
        ("person", (12, 7, 4, 3), 12, False),
    ]


def drawn(content: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What Cityscapes' own tool makes of polygons."""
    image = Image.new("I", (content["imgWidth"], content["imgHeight"]), 0)
    counts: Counter[str] = Counter()
    for entry in content["objects"]:
        name, points = entry["label"], [tuple(point) for point in entry["polygon"]]
        if entry.get("deleted") or name == "license plate":
            continue
        number = OTHER_NUMBERS.get(name) or OBJECT_NUMBERS[name.removesuffix("group")]
        if name in OBJECT_NUMBERS:
            number = 1000 * number + counts[name]
            counts[name] += 1
        ImageDraw.Draw(image).polygon(points, fill=number)
    return np.asarray(image).astype(np.uint16)


NAMES = [*OBJECT_NUMBERS, *OTHER_NUMBERS, "cargroup", "bicyclegroup", "license plate"]
OBJECTS = st.lists(
    st.fixed_dictionaries(
        {
            "label": st.sampled_from(NAMES),
            "polygon": st.lists(
                st.tuples(st.integers(0, SIZE[0] + 5), st.integers(0, SIZE[1] - 1)), min_size=3, max_size=7
            ),
        },
        optional={"deleted": st.integers(0, 1)},
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(OBJECTS)
def test_both_sources_agree(tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, Any]]) -> None:
    # What lies wholly outside is refused; a first point inside keeps these in.
    objects = [{**one, "polygon": [(5, 5), *one["polygon"]]} for one in objects]
    root = with_objects(tmp_path_factory.mktemp("agree"), *objects)
    from_polygons = boxes_of(read_cityscapes(root))
    labels = root / "gtFine" / f"{STEM}_gtFine_polygons.json"
    numbers = drawn(json.loads(labels.read_text()))
    Image.fromarray(numbers).save(labels.with_name(labels.name.replace("polygons.json", "instanceIds.png")))
    labels.unlink()
    assert boxes_of(read_cityscapes(root)) == from_polygons


SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]


def car(**changes: Any) -> dict[str, Any]:
    return {"label": "car", "polygon": SQUARE, **changes}


@pytest.mark.parametrize(
    ("entry", "code", "place"),
    [
        pytest.param("car", "F02", "", id="no-object"),
        pytest.param({"polygon": SQUARE}, "F17", ".label", id="no-label"),
        pytest.param(car(label=["car"]), "F17", ".label", id="label-is-a-list"),
        pytest.param(car(label="Car"), "F07", ".label", id="unknown-label"),
        pytest.param(car(label="zebragroup"), "F07", ".label", id="unknown-group"),
        pytest.param({"label": "car"}, "F02", ".polygon", id="no-polygon"),
        pytest.param(car(polygon=[[1, 2]]), "F02", ".polygon", id="one-point"),
        pytest.param(car(polygon=[[1, 2], [3]]), "F09", ".polygon[1]", id="half-a-point"),
        pytest.param(car(polygon=[[1, 2], 3]), "F09", ".polygon[1]", id="no-point"),
        pytest.param(car(polygon=[[1, float("nan")], [3, 4]]), "F09", ".polygon[0]", id="nan"),
        pytest.param(car(polygon=[[1, "2"], [3, 4]]), "F09", ".polygon[0]", id="text"),
        pytest.param(car(polygon=[[1, True], [3, 4]]), "F09", ".polygon[0]", id="true"),
        pytest.param(car(polygon=[[1, 10**30], [3, 4]]), "F09", ".polygon[0]", id="huge"),
        pytest.param(car(polygon=[[64, 2], [80, 2], [80, 9]]), "F10", ".polygon", id="right-of-the-image"),
        pytest.param(car(polygon=[[4, -9], [8, -9], [8, -1]]), "F10", ".polygon", id="above-the-image"),
    ],
)
def test_objects_that_cannot_be_used(tmp_path: Path, entry: Any, code: str, place: str) -> None:
    root = with_objects(tmp_path, car(polygon=[[1, 1], [5, 1], [5, 5], [1, 5]]), entry)
    with pytest.raises(DataError) as raised:
        read_cityscapes(root)
    labels = root / "gtFine" / f"{STEM}_gtFine_polygons.json"
    assert (raised.value.code, raised.value.where) == (code, f"{labels}: objects[1]{place}")
    log = FaultLog(drops=True)
    assert boxes_of(read_cityscapes(root, log=log)) == {NAME: [("car", (1, 1, 5, 5), 25, False)]}
    assert [fault.code for fault in log.faults] == [code]


def polygons(edit: Callable[[str], Any]) -> Callable[[Path], None]:
    """Change the polygons of the first picture, which has no instance image then."""

    def spoil(root: Path) -> None:
        path = root / "gtFine" / f"{STEM}_gtFine_polygons.json"
        content = edit(path.read_text())
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.with_name(path.name.replace("polygons.json", "instanceIds.png")).unlink()

    return spoil


def keys(**changes: Any) -> Callable[[Path], None]:
    return polygons(lambda text: json.dumps({**json.loads(text), **changes}))


def instance_image(image: Image.Image | bytes) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root / "gtFine" / f"{STEM}_gtFine_instanceIds.png"
        path.write_bytes(image) if isinstance(image, bytes) else image.save(path)

    return spoil


def cut_instance_image(root: Path) -> None:
    path = root / "gtFine" / f"{STEM}_gtFine_instanceIds.png"
    path.write_bytes(path.read_bytes()[:-40])


def picture(edit: Callable[[Path], Any]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        polygons(lambda text: text)(root)
        edit(root / "leftImg8bit" / f"{STEM}_leftImg8bit.png")

    return spoil


def linked(path: Path) -> None:
    outside = path.rename(path.parents[3] / "elsewhere.png")
    path.symlink_to(outside)


def without_labels(root: Path) -> None:
    for path in (root / "gtFine" / "train" / "aachen").iterdir():
        path.unlink()


def numbers(value: int) -> Image.Image:
    content = numbers_of(THINGS[STEM])
    content[40:44, 0:3] = value
    return Image.fromarray(content)


FRACTIONS = [car(polygon=[[x / 64, y / 48] for x, y in SQUARE])]


@pytest.mark.parametrize(
    ("spoil", "code", "reason"),
    [
        pytest.param(polygons(lambda text: text[:100]), "F01", "not valid JSON", id="F01-cut-off"),
        pytest.param(polygons(lambda _: b"\xff\xfe\0\0"), "F01", "not valid JSON", id="F01-bytes"),
        pytest.param(polygons(lambda _: "[" * 99999), "F01", "nested", id="F01-nested"),
        pytest.param(polygons(lambda _: "[]"), "F02", "must be an object, is a list", id="F02-list"),
        pytest.param(keys(objects={}), "F02", "must be a list, is an object", id="F02-objects"),
        pytest.param(keys(objects=None), "F02", "must be a list", id="F02-no-objects"),
        pytest.param(keys(imgWidth=None), "F02", '"imgWidth" is missing', id="F02-no-width"),
        pytest.param(keys(imgHeight="48"), "F02", "must be a whole number", id="F02-height"),
        pytest.param(keys(imgHeight=0), "F02", "must be positive", id="F02-zero"),
        pytest.param(keys(imgHeight=10**9), "F26", "are more than", id="F26-huge"),
        pytest.param(keys(imgWidth=65), "F25", "has 64 x 48 pixels, its polygons are for 65 x 48", id="F25-size"),
        pytest.param(keys(objects=FRACTIONS), "F11", "normalised", id="F11-fractions"),
        pytest.param(keys(objects=[car()] * 1001), "F02", "more than 1000 objects", id="F02-too-many"),
        pytest.param(picture(lambda path: path.unlink()), "F19", "the picture is missing", id="F19-picture"),
        pytest.param(picture(lambda path: path.write_bytes(b"")), "F21", "0 bytes", id="F21-picture"),
        pytest.param(picture(linked), "F31", "by a link", id="F31-picture"),
        pytest.param(without_labels, "F02", "neither an instance image nor polygons", id="F02-no-labels"),
        pytest.param(cut_instance_image, "F20", "cannot be read", id="F20-cut-off"),
        pytest.param(instance_image(b""), "F21", "0 bytes", id="F21-instance-image"),
        pytest.param(instance_image(b"no image"), "F22", "is not an image", id="F22-instance-image"),
        pytest.param(instance_image(Image.new("L", SIZE, 26)), "F03", "16-bit grey", id="F03-eight-bits"),
        pytest.param(instance_image(Image.new("RGB", SIZE)), "F03", "16-bit grey", id="F03-colours"),
    ],
)
def test_pictures_that_cannot_be_used(tmp_path: Path, spoil: Callable[[Path], None], code: str, reason: str) -> None:
    root = make_tree(tmp_path)
    spoil(root)
    with pytest.raises(DataError, match=reason) as raised:
        read_cityscapes(root)
    assert raised.value.code == code
    assert "aachen_000000_000019" in str(raised.value.where)
    log = FaultLog(drops=True)
    assert boxes_of(read_cityscapes(root, log=log)) == {name: boxes for name, boxes in BOXES.items() if name != NAME}
    assert [fault.code for fault in log.faults] == [code]


@pytest.mark.parametrize("value", [34, 999, 7001, 34000, 65535])
def test_f07_numbers_of_no_label(tmp_path: Path, value: int) -> None:
    root = make_tree(tmp_path)
    instance_image(numbers(value))(root)
    with pytest.raises(DataError, match=f"12 pixels have the number {value}") as raised:
        read_cityscapes(root)
    assert raised.value.code == "F07"
    assert boxes_of(read_cityscapes(root, log=FaultLog(drops=True))) == BOXES


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    stem = "train/aachen/\udcff"
    try:
        root = make_tree(tmp_path, {**THINGS, stem: []})
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DataError, match="not valid Unicode"):
        read_cityscapes(root)
    assert boxes_of(read_cityscapes(root, log=FaultLog(drops=True))) == BOXES


def test_f19_all_missing_pictures_are_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    shutil.rmtree(root / "leftImg8bit" / "train")
    with pytest.raises(DataError, match="3 such") as raised:
        read_cityscapes(root)
    assert len(raised.value.places) == 3


def test_missing_folders(tmp_path: Path) -> None:
    assert not is_cityscapes(tmp_path)
    root = make_tree(tmp_path / "cs")
    (root / "gtFine").rename(root / "gtCoarse")
    assert is_cityscapes(root)
    with pytest.raises(DataError, match=r"there is no gtFine, nor gtFine_trainvaltest\.zip") as raised:
        read_cityscapes(root)
    assert raised.value.code == "F02"
    (root / "gtCoarse").rename(root / "gtFine")
    shutil.rmtree(root / "leftImg8bit")
    with pytest.raises(DataError, match="there is no leftImg8bit") as raised:
        read_cityscapes(root)
    assert raised.value.code == "F19"
    (root / "leftImg8bit").mkdir()
    shutil.rmtree(root / "gtFine" / "train")
    shutil.rmtree(root / "gtFine" / "val")
    with pytest.raises(DataError, match="no pictures with labels"):
        read_cityscapes(root)


def zipped(root: Path, *names: str) -> Path:
    """Put folders into the official archives, and take them away."""
    for name in names:
        stray = root / name / "test" / "berlin" / "berlin_000000_000001_leftImg8bit.png"
        stray.parent.mkdir(parents=True)
        stray.write_bytes(b"not read")
        with zipfile.ZipFile(root / f"{name}_trainvaltest.zip", "w") as archive:
            archive.writestr("license.txt", "not read")
            for path in sorted((root / name).rglob("*")):
                archive.write(path, path.relative_to(root).as_posix())
        shutil.rmtree(root / name)
    return root


@pytest.mark.parametrize("names", [("leftImg8bit",), ("gtFine",), ("leftImg8bit", "gtFine")])
def test_archives_are_unpacked_beside_themselves(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = zipped(make_tree(tmp_path), *names)
    assert is_cityscapes(root)
    before = all_bytes(root)
    with pytest.raises(UsageError, match="has to be unpacked first"):
        read_cityscapes(root, ReadOptions(unpack=False))
    assert all_bytes(root) == before
    source = read_cityscapes(root)
    assert boxes_of(source) == BOXES
    assert [note for note in source.notes if "were unpacked to" in note] == list(source.notes[: len(names)])
    assert not list(root.rglob("berlin*"))
    unpacked = all_bytes(root)
    again = read_cityscapes(root, ReadOptions(unpack=False))
    assert boxes_of(again) == BOXES
    assert all_bytes(root) == unpacked
    for split, content in again.splits.items():
        folder = root / "leftImg8bit_trainvaltest" if "leftImg8bit" in names else root
        assert content.image_root == folder / "leftImg8bit" / split


def test_f37_damaged_archive(tmp_path: Path) -> None:
    root = zipped(make_tree(tmp_path), "gtFine")
    archive = root / "gtFine_trainvaltest.zip"
    archive.write_bytes(archive.read_bytes()[:-50])
    before = all_bytes(root)
    with pytest.raises(DataError) as raised:
        read_cityscapes(root)
    assert (raised.value.code, raised.value.where) == ("F37", str(archive))
    assert all_bytes(root) == before


@pytest.mark.parametrize("names", [(), ("leftImg8bit", "gtFine")], ids=["folders", "archives"])
def test_training_needs_prepared_boxes(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = zipped(make_tree(tmp_path / "cs"), *names)
    with pytest.raises(DataError, match="Cityscapes as it is downloaded") as raised:
        open_dataset(root)
    assert f"dedetr prepare-data {root}" in str(raised.value.hint)


def test_boxes_in_coco_form_are_read_as_they_stand(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "cs")
    for split in ("train", "val"):
        write_json(tmp_path / "CocoFormatAnnos" / f"cityscapes_{split}_cocostyle.json", coco_dict())
    layout = find_layout(root)
    assert layout is not None
    assert layout[0] == "cityscapes"
    assert layout[1]["val"].annotation_file == tmp_path / "CocoFormatAnnos" / "cityscapes_val_cocostyle.json"


def test_format_is_recognised(tmp_path: Path) -> None:
    assert boxes_of(read_source(make_tree(tmp_path))) == BOXES
    assert boxes_of(read_source(zipped(tmp_path, "leftImg8bit", "gtFine"), "cityscapes")) == BOXES


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(NAMES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["label", "polygon"]), inner),
    max_leaves=8,
)
POINT = st.lists(st.floats(-1e9, 1e9) | st.integers(-(10**9), 10**9) | JSON, max_size=3)
ENTRY = JSON | st.fixed_dictionaries(
    {"label": st.sampled_from(NAMES) | JSON, "polygon": st.lists(POINT, max_size=6) | JSON}, optional={"deleted": JSON}
)
FILE = JSON | st.fixed_dictionaries(
    {
        "imgWidth": st.just(SIZE[0]) | JSON,
        "imgHeight": st.just(SIZE[1]) | JSON,
        "objects": st.lists(ENTRY, max_size=5) | JSON,
    }
)


@settings(max_examples=200, deadline=None)
@given(content=FILE, is_cut=st.integers(0, 9), drops=st.booleans())
def test_any_polygons_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: Any, is_cut: int, drops: bool
) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzz"
    if not root.is_dir():
        make_tree(root, {STEM: []}, instances=False)
    text = json.dumps(content)
    write_json(root / "gtFine" / f"{STEM}_gtFine_polygons.json", text[: len(text) // 2] if is_cut == 0 else text)
    outcome = FaultLog(drops=True)
    source = outcome.attempt(read_cityscapes, root, log=FaultLog(drops=drops))
    assert all(
        fault.code in ("F01", "F02", "F07", "F09", "F10", "F11", "F17", "F19", "F25", "F26") for fault in outcome.faults
    )
    for _, (x, y, w, h), area, _ in boxes_of(source)[NAME] if source is not None else ():
        assert min(x, y) >= 0
        assert x + w <= SIZE[0]
        assert y + h <= SIZE[1]
        assert 0 < area <= w * h

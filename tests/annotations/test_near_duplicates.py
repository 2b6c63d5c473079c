from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from core.annotations.checks import near_duplicates
from core.annotations.checks.near_duplicates import (
    MAX_DISTANCE,
    MIN_SIMILARITY,
    NUM_BITS,
    NUM_NUMBERS,
    Fingerprints,
    compare,
    find_near_duplicates,
    fingerprint,
)
from core.annotations.checks.repeats import find_repeats
from core.annotations.content import SplitContent
from core.annotations.demo import draw_demo_splits
from core.annotations.faults import FaultLog
from core.annotations.images import open_image, open_small_grey
from core.annotations.records import AnnotationSet, Category, ImageRecord
from core.errors import DataError


def _content(folder: Path) -> SplitContent:
    """All images of a folder, with the sizes that people see."""
    records = []
    for index, path in enumerate(sorted(folder.iterdir()), start=1):
        with Image.open(path) as image:
            swaps = image.getexif().get(0x0112, 1) > 4
            width, height = reversed(image.size) if swaps else image.size
        records.append(ImageRecord(index, path.name, width, height))
    return SplitContent(AnnotationSet(tuple(records), (), (Category(1, "thing"),)), folder)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in `train`, other ones in `val`."""
    root = tmp_path_factory.mktemp("pictures")
    draw_demo_splits(root, seed=3, num_train=12, num_val=8)
    return root


def _cropped(image: Image.Image, left: float, right: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(left * width), round(left * height), round(right * width), round(right * height)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded again": lambda image: image,
    "halved": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "doubled": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "corner cropped by 2 %": lambda image: _cropped(image, 0, 0.98),
    "all edges cropped by 1 %": lambda image: _cropped(image, 0.01, 0.99),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_and_nothing_else(photographs: Path, tmp_path: Path, change: str) -> None:
    val = tmp_path / "val"
    val.mkdir()
    for path in (photographs / "val").iterdir():
        (val / path.name).write_bytes(path.read_bytes())
    originals = sorted((photographs / "train").iterdir())[:4]
    for path in originals:
        with Image.open(path) as image:
            CHANGES[change](image.convert("RGB")).save(val / f"copy-of-{path.stem}.jpg", quality=70)
    splits = {"train": _content(photographs / "train"), "val": _content(val)}
    found = find_near_duplicates(splits, find_repeats(splits))
    assert [(pair.first, pair.second) for pair in found] == [
        (("train", path.name), ("val", f"copy-of-{path.stem}.jpg")) for path in originals
    ]
    assert all(0 <= pair.distance <= MAX_DISTANCE and MIN_SIMILARITY <= pair.similarity <= 1 for pair in found)


def test_every_two_splits_are_compared_and_each_picture_is_looked_at_once(photographs: Path, tmp_path: Path) -> None:
    path = next((photographs / "train").iterdir())
    for split in ("val", "test"):
        (tmp_path / split).mkdir()
        with Image.open(path) as image:
            image.save(tmp_path / split / f"{split}.jpg", quality={"val": 60, "test": 90}[split])
    contents = {"train": _content(photographs / "train")}
    contents |= {split: _content(tmp_path / split) for split in ("val", "test")}
    looked_at: list[int] = []
    found = find_near_duplicates(contents, on_image=lambda: looked_at.append(1))
    first = ("train", path.name)
    assert {(pair.first, pair.second) for pair in found} == {
        (first, ("val", "val.jpg")),
        (first, ("test", "test.jpg")),
        (("val", "val.jpg"), ("test", "test.jpg")),
    }
    assert len(looked_at) == 14


def test_equal_files_are_left_to_the_hash(photographs: Path, tmp_path: Path) -> None:
    source = next((photographs / "train").iterdir())
    (tmp_path / "equal.png").write_bytes(source.read_bytes())
    splits = {"train": _content(photographs / "train"), "val": _content(tmp_path)}
    assert find_near_duplicates(splits, find_repeats(splits)) == []
    without = find_near_duplicates(splits)
    assert [(pair.second, pair.distance, pair.similarity) for pair in without] == [(("val", "equal.png"), 0, 1.0)]


def test_a_single_split_is_compared_with_itself(tmp_path: Path, photographs: Path) -> None:
    path = next((photographs / "train").iterdir())
    with Image.open(path) as image:
        image.save(tmp_path / "a.png")
        image.save(tmp_path / "b.jpg", quality=80)
        image.save(tmp_path / "c.jpg", quality=60)
    (tmp_path / "z.png").write_bytes((tmp_path / "a.png").read_bytes())
    splits = {"train": _content(tmp_path)}
    found = find_near_duplicates(splits, find_repeats(splits))
    assert [pair.second[1] for pair in found] == ["b.jpg", "c.jpg"]  # z.png equals a.png as a file
    assert all(pair.first[1] < pair.second[1] for pair in found)


def test_a_rotation_in_the_exif_tags_is_undone(tmp_path: Path, photographs: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    with Image.open(sorted((photographs / "train").iterdir())[0]) as image:
        image = image.crop((0, 0, 160, 120))  # of a square one the stated size would not tell that it was turned
        image.save(tmp_path / "train" / "upright.jpg")
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned by 90 degrees clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "val" / "turned.jpg", exif=exif)
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "train" / "sideways.jpg")
    splits = {split: _content(tmp_path / split) for split in ("train", "val")}
    assert [pair.first[1] for pair in find_near_duplicates(splits)] == ["upright.jpg"]
    # Labelled as it is stored, it is another picture.
    stored = AnnotationSet((ImageRecord(1, "turned.jpg", 120, 160),), (), splits["val"].annotations.categories)
    splits["val"] = SplitContent(stored, tmp_path / "val")
    assert [pair.first[1] for pair in find_near_duplicates(splits)] == ["sideways.jpg"]


def test_pictures_that_show_nothing_are_not_alike(tmp_path: Path) -> None:
    for split, colour in (("train", 40), ("val", 90)):
        (tmp_path / split).mkdir()
        Image.new("RGB", (40, 30), (colour, 90, 7)).save(tmp_path / split / "plain.png")
    assert find_near_duplicates({split: _content(tmp_path / split) for split in ("train", "val")}) == []


def _dotted(*centres: tuple[int, int]) -> Image.Image:
    pixels = np.full((96, 96), 250, np.uint8)
    for x, y in centres:
        pixels[y - 6 : y + 6, x - 6 : x + 6] = 20
    return Image.fromarray(pixels)


def test_a_small_thing_elsewhere_on_an_empty_ground_is_another_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits say too little of it: the second look decides."""
    one, other, again = _dotted((20, 20)), _dotted((70, 60)), _dotted((21, 20))
    prints = [_fingerprints([image]) for image in (one, other, again)]
    assert list(compare(prints[0], prints[1])) == []
    assert len(list(compare(prints[0], prints[2]))) == 1
    monkeypatch.setattr(near_duplicates, "MIN_SIMILARITY", -1.0)
    assert len(list(compare(prints[0], prints[1]))) == 1


def _fingerprints(images: list[Image.Image]) -> Fingerprints:
    made = [fingerprint(image) for image in images]
    return Fingerprints(np.stack([bits for bits, _ in made]), np.stack([numbers for _, numbers in made]))


def _reference(first: Fingerprints, second: Fingerprints, *, is_same: bool) -> list[tuple[int, int, int]]:
    """One pair at a time."""
    found = []
    for column in range(len(second.bits)):
        pairs = [
            (int((first.bits[row] != second.bits[column]).sum()), row)
            for row in range(column if is_same else len(first.bits))
            if float(first.structure[row] @ second.structure[column]) >= MIN_SIMILARITY
        ]
        if pairs and min(pairs)[0] <= MAX_DISTANCE:
            found.append((column, min(pairs)[1], min(pairs)[0]))
    return found


@pytest.mark.parametrize("is_same", [False, True])
@pytest.mark.parametrize("pairs_at_once", [1, 100, 1 << 20])
def test_blocks_find_what_pairs_find(monkeypatch: pytest.MonkeyPatch, pairs_at_once: int, is_same: bool) -> None:
    rng = np.random.default_rng(5)
    scenes = rng.choice([-1, 1], (6, NUM_BITS))
    directions = rng.normal(size=(6, NUM_NUMBERS))

    def some(num: int) -> Fingerprints:
        which = rng.integers(0, 6, num)
        bits = np.where(rng.random((num, NUM_BITS)) < rng.uniform(0, 0.25, (num, 1)), -1, 1) * scenes[which]
        numbers = directions[which] + rng.uniform(0, 1, (num, 1)) * rng.normal(size=(num, NUM_NUMBERS))
        return Fingerprints(
            bits.astype(np.int8), (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).astype(np.float32)
        )

    first = some(20)
    first = Fingerprints(np.tile(first.bits, (2, 1)), np.tile(first.structure, (2, 1)))  # the first of equals counts
    second = first if is_same else some(31)
    expected = _reference(first, second, is_same=is_same)
    assert 5 < len(expected) < 40
    monkeypatch.setattr(near_duplicates, "_PAIRS_AT_ONCE", pairs_at_once)
    found = list(compare(first, second, is_same=is_same))
    assert [(column, row, distance) for column, row, distance, _ in found] == expected
    for column, row, _, similarity in found:
        assert similarity == pytest.approx(float(first.structure[row] @ second.structure[column]), abs=1e-3)


def test_a_damaged_image_is_a_fault_of_its_own(tmp_path: Path, photographs: Path) -> None:
    for path in (photographs / "train").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = sorted(tmp_path.iterdir())[3]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)  # its end is as it should be
    splits = {"train": _content(photographs / "train"), "val": _content(tmp_path)}
    damaged.write_bytes(bytes(content))
    log = FaultLog(drops=True)
    found = find_near_duplicates(splits, log=log)
    assert len(found) == 11
    assert [(fault.code, fault.severity, fault.where) for fault in log.faults] == [("F20", "error", str(damaged))]
    with pytest.raises(DataError) as caught:
        find_near_duplicates(splits)
    assert caught.value.where == str(damaged)


def test_threads_leave_the_filters_of_warnings_alone(photographs: Path) -> None:
    before: list[Any] = list(warnings.filters)
    content = _content(photographs / "train")
    find_near_duplicates({"train": content}, on_image=lambda: warnings.simplefilter("always", RuntimeWarning))
    assert list(warnings.filters) == before


def test_repeats_of_a_file_that_went_away(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    content = _content(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError) as caught:
        find_repeats({"train": content})
    assert caught.value.code == "F19"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK", "YCbCr"])
def test_a_small_grey_shows_the_same_picture(tmp_path: Path, photographs: Path, mode: str) -> None:
    with Image.open(next((photographs / "train").iterdir())) as opened:
        image = opened.convert("RGB").resize((320, 240))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    else:
        image = image.convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("RGB", "L", "CMYK", "YCbCr") else "a.png")
    image.save(path)
    small = open_small_grey(path, 50, (320, 240))
    assert small.mode == "L"
    if mode in ("RGB", "L", "YCbCr"):
        assert small.size == (80, 60)
    whole = open_image(path).convert("L")
    difference = np.asarray(small.resize((16, 12))).astype(int) - np.asarray(whole.resize((16, 12)))
    assert np.abs(difference).mean() < 4

"""F19 to F27, F35 and F36: images that cannot be used, and odd ones that can.

Those that break in the middle of a run are in tests/datasets/ (test_dataset.py, test_batches.py).
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.annotations.images import open_image
from core.errors import DataError
from tests.faults.desk import Desk, cut


def test_f19_image_missing(desk: Desk) -> None:
    for name in ("001.png", "003.png"):
        desk.image(name).unlink()
    error = desk.refuse_source("F19")
    assert "2 of 5 train images cannot be used: 001.png: the image is missing; 003.png" in error.message
    assert isinstance(error, DataError)
    assert [Path(place).name for place in error.places] == ["001.png", "003.png"]


def png(width: int, height: int, *, whole: bool) -> bytes:
    """A black one-bit PNG; or only its header, and a stream that is cut off."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    if not whole:
        return start + struct.pack(">I", 1000) + b"IDATcut"
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(b"\0" * (1 + width // 8)) for _ in range(height)) + rows.flush()
    data = struct.pack(">I", len(packed)) + b"IDAT" + packed + struct.pack(">I", zlib.crc32(b"IDAT" + packed))
    return start + data + b"\0\0\0\0IEND\xaeB`\x82"


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


IMAGE_FAULTS = [
    pytest.param(lambda path: path.unlink(), "F19", "missing", id="F19-missing"),
    pytest.param(cut, "F20", "cannot be read", id="F20-cut-off"),
    pytest.param(lambda path: path.write_bytes(b""), "F21", "0 bytes", id="F21-zero-bytes"),
    pytest.param(lambda path: path.write_text("no image"), "F22", "not an image", id="F22-text"),
    pytest.param(
        lambda path: Image.new("F", (40, 30)).save(path, format="TIFF"), "F23", "floating-point", id="F23-floats"
    ),
    pytest.param(
        lambda path: Image.new("RGB", (41, 30)).save(path, exif=exif(6)), "F25", "41 x 30", id="F25-neither-way-up"
    ),
    pytest.param(lambda path: Image.new("RGB", (400, 300)).save(path), "F25", "says 40 x 30", id="F25-another-size"),
    pytest.param(lambda path: path.write_bytes(png(9000, 9000, whole=True)), "F35", "more than", id="F35-bomb"),
    pytest.param(lambda path: path.write_bytes(png(50_000, 50_000, whole=False)), "F35", "more than", id="F35-header"),
    *(
        pytest.param(
            lambda path, start=start: path.write_bytes(start + b" " * 3000), "F36", f"{name} by its", id=f"F36-{name}"
        )
        for name, start in (
            ("FITS", b"SIMPLE  =       T"),
            ("EPS", b"%!PS-Adobe"),
            ("PSD", b"8BPS"),
            ("PDF", b"%PDF-1"),
        )
    ),
]
"""How one image of the source is spoilt; the code; a word of the message."""


@pytest.mark.parametrize(("spoil", "code", "words"), IMAGE_FAULTS)
def test_f20_image_that_cannot_be_used(desk: Desk, spoil: Callable[[Path], object], code: str, words: str) -> None:
    """F19 to F25, F35 and F36: refused before anything is decoded that could fill the memory."""
    spoil(desk.image())
    error = desk.refuse_source(code)
    assert str(error.where).endswith("train2017/001.png")
    assert words in error.message
    assert desk.drop()[0] == {code: 1}


def test_f23_other_pixels_become_rgb(desk: Desk) -> None:
    for name, mode, fmt in (("001.png", "L", "PNG"), ("002.png", "P", "PNG"), ("003.png", "RGBA", "PNG"),
                            ("004.png", "CMYK", "JPEG"), ("005.png", "I;16", "PNG")):  # fmt: skip
        Image.new(mode, (40, 30)).save(desk.image(name), format=fmt)
    desk.accept("prepare-data", "coco")
    for path in desk.image().parent.iterdir():
        assert open_image(path, (40, 30)).mode == "RGB"


def test_f24_the_orientation_that_has_the_stated_size(desk: Desk) -> None:
    for name, size in (("001.png", (30, 40)), ("002.png", (40, 30))):
        Image.new("RGB", size).save(desk.image(name), exif=exif(6))
    desk.accept("prepare-data", "coco")


def test_f25_another_size_than_stated(desk: Desk) -> None:
    desk.put("images", 0, "height", 31)
    error = desk.refuse_source("F25")
    assert "40 x 30 pixels, its annotation file says 40 x 31" in error.message


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10)], ids=["one-pixel", "long"])
def test_f26_odd_sizes_are_read(desk: Desk, size: tuple[int, int]) -> None:
    desk.edit(lambda content: content["images"][4].update(width=size[0], height=size[1]))
    Image.new("RGB", size).save(desk.image("005.png"))
    desk.accept("prepare-data", "coco")


@pytest.mark.parametrize(("width", "code"), [(10**9, "F26"), (0, "F02"), (-1, "F02"), (None, "F02")])
def test_f26_sizes_that_cannot_be(desk: Desk, width: Any, code: str) -> None:
    desk.put("images", 4, "width", width)
    assert "images[4]" in str(desk.refuse_source(code).where)


def test_f27_picture_in_two_splits(desk: Desk) -> None:
    shutil.copyfile(desk.image("002.png"), desk.source / "val2017" / "501.png")
    error = desk.refuse_source("F27", "--strict")
    assert "train/002.png = val/501.png" in error.message
    assert "pictures that are in two splits: 1" in desk.accept("prepare-data", "coco")

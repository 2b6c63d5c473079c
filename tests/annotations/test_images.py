from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.annotations.images import MAX_PIXELS, check_image, open_image, read_header, upright_size
from core.errors import DataError

RED_LEFT = np.zeros((30, 40, 3), np.uint8)
RED_LEFT[:, :20, 0] = 255


def save(path: Path, pixels: Any = RED_LEFT, orientation: int | None = None, **options: Any) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """The start of a one-bit PNG of this size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tiff", "gif"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}")
    assert read_header(path) == (40, 30, 1)
    check_image(path, (40, 30))
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(image).astype(int) - RED_LEFT).mean() < 6


GREY = np.full((30, 40), 200, np.uint8)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(Image.fromarray(GREY), (200, 200, 200), id="F23-grey"),
        pytest.param(Image.new("1", (4, 3), 1), (255, 255, 255), id="F23-one-bit"),
        pytest.param(Image.new("P", (4, 3), 5), None, id="F23-palette"),
        pytest.param(Image.new("RGBA", (4, 3), (10, 20, 30, 0)), (10, 20, 30), id="F23-alpha-is-dropped"),
        pytest.param(Image.new("LA", (4, 3), (10, 0)), (10, 10, 10), id="F23-grey-alpha"),
        pytest.param(Image.fromarray(np.full((3, 4), 0xABCD, np.uint16)), (0xAB, 0xAB, 0xAB), id="F23-16-bit"),
    ],
)
def test_modes_become_rgb(tmp_path: Path, image: Image.Image, expected: tuple[int, ...] | None) -> None:
    path = save(tmp_path / "a.png", image)
    opened = open_image(path)
    assert opened.mode == "RGB"
    if expected is not None:
        assert opened.getpixel((1, 1)) == expected


def test_f23_cmyk(tmp_path: Path) -> None:
    opened = open_image(save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95))
    red, green, blue = opened.getpixel((4, 4))  # type: ignore[misc]
    assert red > 200
    assert max(green, blue) < 60


def test_f23_floating_point_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tiff", Image.new("F", (4, 3), 0.5))
    with pytest.raises(DataError, match="floating-point"):
        open_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [6, 8])
def test_f24_rotation_follows_the_stated_size(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = save(tmp_path / f"a.{suffix}", orientation=orientation)
    assert upright_size(path) == (30, 40)
    check_image(path, (30, 40))
    seen = open_image(path)
    turned = open_image(path, (30, 40))
    assert seen.size == turned.size == (30, 40)
    assert seen.tobytes() == turned.tobytes()
    # 6: the stored left is the seen top; 8: it is the seen bottom.
    top, bottom = np.asarray(turned)[:10, :, 0].mean(), np.asarray(turned)[-10:, :, 0].mean()
    assert (top > bottom) == (orientation == 6)
    if suffix != "tiff":  # Pillow turns TIFF itself
        stored = open_image(path, (40, 30))
        assert stored.size == (40, 30)
        assert np.asarray(stored)[:, :10, 0].mean() > 200


def test_f24_half_turn_is_left_to_the_stated_size(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", orientation=3)
    assert np.asarray(open_image(path, (40, 30)))[:, :10, 0].mean() > 200
    assert np.asarray(open_image(path))[:, :10, 0].mean() < 50


def test_f24_damaged_tags_do_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", exif=b"Exif\0\0not tiff at all")
    assert read_header(path) == (40, 30, 1)
    assert open_image(path).size == (40, 30)


@pytest.mark.parametrize("orientation", [1, 6])
def test_f25_size_differs(tmp_path: Path, orientation: int) -> None:
    path = save(tmp_path / "a.jpg", orientation=orientation)
    for act in (check_image, open_image):
        with pytest.raises(DataError, match="40 x 30 pixels, its annotation file says 41 x 30") as raised:
            act(path, (41, 30))
        assert raised.value.where == str(path)


def broken(kind: str, path: Path) -> None:
    if kind in ("jpg", "png", "gif", "webp", "bmp"):
        noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, format={"jpg": "jpeg"}.get(kind, kind))
        path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    elif kind == "zero":
        path.touch()
    elif kind == "text":
        path.write_text("no image")
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        pytest.param("jpg", "cannot be read", id="F20-jpeg"),
        pytest.param("png", "cannot be read", id="F20-png"),
        pytest.param("gif", "cannot be read", id="F20-gif"),
        pytest.param("webp", "cannot be read|not an image", id="F20-webp"),
        pytest.param("bmp", "cannot be read", id="F20-bmp"),
        pytest.param("zero", "empty", id="F21"),
        pytest.param("text", "not an image", id="F22"),
        pytest.param("folder", "not a file", id="F22-folder"),
        pytest.param("missing", "missing", id="F19"),
    ],
)
def test_damaged_files_are_found_before_training(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "a.jpg"
    broken(kind, path)
    before = path.read_bytes() if path.is_file() else b""
    for act in (check_image, open_image):
        with pytest.raises(DataError, match=message) as raised:
            act(path, (90, 90))
        assert str(path) == raised.value.where
    if before:
        assert path.read_bytes() == before


def test_jpeg_with_bytes_after_its_end_is_whole(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 10_000)
    check_image(path, (40, 30))


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10)], ids=["F26-one-pixel", "F26-long"])
def test_odd_sizes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", size))
    check_image(path, size)
    assert open_image(path, size).size == size


@pytest.mark.parametrize("size", [(50_000, 50_000), (1 << 13, 1 << 14), (10_000, 10_000)], ids=str)
def test_f35_header_that_claims_too_much(tmp_path: Path, size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    path = tmp_path / "a.png"
    path.write_bytes(png_header(*size) + struct.pack(">I", 1000) + b"IDATcut")
    for act in (read_header, open_image):
        with pytest.raises(DataError, match="more than the 67108864 that are decoded"):
            act(path)


def test_f35_real_bomb(tmp_path: Path) -> None:
    rows = zlib.compressobj(9)
    row = b"\0" * (1 + 50_000 // 8)
    packed = b"".join(rows.compress(row * 1000) for _ in range(50)) + rows.flush()
    chunk = struct.pack(">I", len(packed)) + b"IDAT" + packed + struct.pack(">I", zlib.crc32(b"IDAT" + packed))
    path = tmp_path / "a.png"
    path.write_bytes(png_header(50_000, 50_000) + chunk + b"\0\0\0\0IEND\xaeB`\x82")
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match="more than"):
        check_image(path, (50_000, 50_000))


@pytest.mark.parametrize("kind", ["eps", "pdf", "ppm", "ico", "tga"])
def test_f36_other_formats_under_a_common_name(tmp_path: Path, kind: str) -> None:
    save(tmp_path / f"a.{kind}").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="not an image"):
        open_image(tmp_path / "a.jpg")


def test_wrong_suffix_is_no_fault(tmp_path: Path) -> None:
    save(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg", (40, 30)).size == (40, 30)

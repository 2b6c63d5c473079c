"""Image files: their headers, their pixels as RGB, and the faults they may have.

The rule for pixels, wherever dedetr reads an image:

* JPEG, PNG, BMP, WebP, TIFF and GIF are read (the first picture of several), told by content, not by name.
* Grey, palette and CMYK pictures become RGB; transparency is dropped, not blended; 16-bit greys keep their upper
  8 bits. Floating-point pixels are refused.
* A photograph may carry a rotation in its EXIF tags. Where an annotation file states the image's size, the
  orientation that has this size wins, the stored one first; without a stated size the rotation is applied.
* Images of more than `MAX_PIXELS` are refused before they are decoded.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from core.errors import DataError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
"""Formats as Pillow names them; anything else it could open (EPS, PSD, FITS, ...) is refused."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
MAX_PIXELS = 1 << 26
"""Width x height that is decoded at most, about 67 million: 200 MB as RGB."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)
_TAIL_BYTES = 1 << 12


def read_header(path: Path) -> tuple[int, int, int]:
    """Read an image's size without decoding it.

    Returns:
        Width and height in pixels as stored, and the EXIF orientation, 1 (upright) to 8.

    Raises:
        DataError: the file is missing, empty, no image of `FORMATS`, or larger than `MAX_PIXELS`.
    """
    with _opened(path) as image:
        return image.width, image.height, _orientation(image)


def upright_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels as people see the image, its EXIF rotation applied; see `read_header`."""
    width, height, orientation = read_header(path)
    return (height, width) if orientation in _SWAPS_SIDES else (width, height)


def open_image(path: Path, expected_size: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image to RGB by this module's rule.

    Args:
        path: the image file.
        expected_size: width and height in pixels that the annotation file states; decides on the EXIF rotation.

    Returns:
        An RGB image, of `expected_size` where one is given.

    Raises:
        DataError: as `read_header`; or the file is cut off or damaged, or has another size than expected.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        rotates = _rotates(path, image.size, orientation, expected_size)
        image.load()
        rgb = to_rgb(image, str(path))
        return rgb.transpose(_TRANSPOSE[orientation]) if rotates else rgb


def read_numbers(path: Path) -> NDArray[np.uint16]:
    """Decode a 16-bit grey image whose pixels are numbers of objects, not light.

    Returns:
        The pixels as they are stored, (H, W).

    Raises:
        DataError: as `read_header`; or the file is cut off or damaged, or has other pixels.
    """
    with _opened(path) as image:
        if not image.mode.startswith("I"):
            raise DataError(
                f"16-bit grey pixels are expected, these are of mode {image.mode}", where=str(path), code="F03"
            )
        image.load()
        numbers = np.asarray(image)
        if numbers.dtype.itemsize > 2 and (numbers.min() < 0 or numbers.max() > 0xFFFF):
            raise DataError("the pixels do not fit into 16 bits", where=str(path), code="F03")
        return numbers.astype(np.uint16)


def open_small_grey(path: Path, least_side: int, expected_size: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image to 8-bit grey, reduced as far as its format does that cheaply (JPEG: by up to eight).

    Args:
        path: the image file.
        least_side: no side is reduced to fewer pixels than this.
        expected_size: see `open_image`; so are the errors.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        rotates = _rotates(path, image.size, orientation, expected_size)
        image.draft("L", (least_side, least_side))
        image.load()
        grey = (image if image.mode in ("L", "RGB") else to_rgb(image, str(path))).convert("L")
        return grey.transpose(_TRANSPOSE[orientation]) if rotates else grey


def check_image(path: Path, expected_size: tuple[int, int]) -> None:
    """Check that an image can be read and has the size that its annotation file states.

    Only the header and the last bytes of a JPEG or PNG are read; a file without a proper end is decoded to
    tell whether something is missing, and so are the rarer formats.

    Raises:
        DataError: as `open_image`.
    """
    with _opened(path) as image:
        _require_rgb_form(image, str(path))
        _rotates(path, image.size, _orientation(image), expected_size)
        if not _has_proper_end(path, image.format):
            image.load()


def require_moderate_size(width: int, height: int, where: str) -> None:
    """Check that an image of a stated size in pixels could be decoded; `where` is for the message.

    Raises:
        DataError: it has more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{width} x {height} pixels are more than the {MAX_PIXELS} that are read", where=where, code="F26"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image lazily, and turn whatever Pillow raises while it is used into a `DataError`."""
    try:
        if not path.is_file():
            raise DataError(
                "the image is missing" if not path.exists() else "is not a file", where=str(path), code="F19"
            )
        if path.stat().st_size == 0:
            raise DataError("the image file is empty (0 bytes)", where=str(path), code="F21")
        with warnings.catch_warnings():
            # Pillow warns of sizes between its limit and twice of it; ours, which is lower, is checked below.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _too_large(path, f"{image.width} x {image.height} pixels are")
                yield image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "its pixels are") from error
    except UnidentifiedImageError as error:
        raise _no_image(path) from error
    except Exception as error:  # Pillow's plugins raise all kinds: OSError, SyntaxError, ValueError, struct.error
        raise DataError(
            f"the image cannot be read: {error}", where=str(path), hint="is the file whole?", code="F20"
        ) from error


_FOREIGN_STARTS = {b"%PDF": "PDF", b"%!PS": "EPS", b"8BPS": "PSD", b"SIMPLE  =": "FITS", b"<svg": "SVG"}
_READABLE = "readable: " + ", ".join(FORMATS)


def _no_image(path: Path) -> DataError:
    with path.open("rb") as stream:
        start = stream.read(16)
    name = next((name for mark, name in _FOREIGN_STARTS.items() if start.startswith(mark)), None)
    if name is not None:
        return DataError(
            f"is not an image that is read, but {name} by its content", where=str(path), hint=_READABLE, code="F36"
        )
    return DataError("is not an image, or damaged at its start", where=str(path), hint=_READABLE, code="F22")


def _too_large(path: Path, what: str) -> DataError:
    return DataError(
        f"{what} more than the {MAX_PIXELS} that are decoded", where=str(path), hint="scale it down", code="F35"
    )


def _orientation(image: Image.Image) -> int:
    # Pillow itself turns TIFF files while loading them, and would decode a PNG to look for EXIF tags behind its pixels.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, LookupError, OSError, TypeError, struct.error):
        return 1  # damaged tags do not make the pixels worse
    return orientation if orientation in _TRANSPOSE else 1


def _rotates(path: Path, stored: tuple[int, int], orientation: int, expected: tuple[int, int] | None) -> bool:
    """Decide whether the EXIF rotation is applied."""
    if expected is None:
        return orientation != 1
    if stored == expected:
        return False
    if orientation in _SWAPS_SIDES and stored == expected[::-1]:
        return True
    raise DataError(
        f"the image has {stored[0]} x {stored[1]} pixels, its annotation file says {expected[0]} x {expected[1]}",
        where=str(path),
        hint="boxes would not fit: use the image that was labelled, or correct the annotation file",
        code="F25",
    )


def to_rgb(image: Image.Image, where: str) -> Image.Image:
    """Return an opened image as RGB by this module's rule, but for its EXIF rotation; `where` is for the message.

    Raises:
        DataError: its pixels are floating-point numbers.
    """
    _require_rgb_form(image, where)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 0xFFFF)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _require_rgb_form(image: Image.Image, where: str) -> None:
    if image.mode == "F":
        raise DataError(
            "floating-point pixels", where=where, hint="save the image with 8 or 16 bits a channel", code="F23"
        )


def _has_proper_end(path: Path, image_format: str | None) -> bool:
    """Tell whether the file ends as its format demands; files cut off do not."""
    end_mark = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(image_format or "")
    if end_mark is None:
        return False
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _TAIL_BYTES))
        return end_mark in stream.read()

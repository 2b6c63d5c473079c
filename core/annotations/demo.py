"""The embedded demo set: small pictures of coloured shapes, drawn from a seed, with exact boxes.

Nothing is downloaded. Colours hint at the class without telling it (most shapes wear their class's colour, some
another's), sizes, rotations, textures and overlaps vary, and every twentieth picture is empty. Equal seeds give
equal pixels, and equal bytes with the same Pillow.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from core.annotations.content import SplitContent
from core.annotations.findings import count_findings
from core.annotations.records import Annotation, AnnotationSet, BoxXYWH, Category, ImageRecord
from core.errors import DataError
from core.files import machine_errors

RECIPE = "demo"
NUM_TRAIN, NUM_VAL, NUM_UNLABELLED = 240, 60, 6
CLASS_HUES = {"circle": 4, "cross": 176, "ring": 288, "square": 216, "star": 46, "triangle": 128}
"""Class names in the order of their ids (from 1), and the hue in degrees that most of their shapes have."""

_SIZES = ((160, 120), (120, 160), (160, 160), (176, 128), (192, 144), (144, 192))
_SCALE = 4
"""Shapes are drawn this much larger and averaged down, which smooths their edges."""
_MAX_COVERED = 0.6
"""No shape is placed where it would hide more than this share of another."""
_MAX_IOU = 0.3
_OTHER_HUE_RATE = 0.12
_EMPTY_EVERY = 20
_NONE, _SOME, _MANY = (1,), (0, 2, 3, 3, 2, 1), (0, 0, 0, 2, 2, 1)
"""How likely 0, 1, 2, ... shapes are in a picture."""

_EDGE_FILTER = ImageFilter.MinFilter(3)

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class _Shape:
    """A shape and its place: `mask` is 0 ... 255 over the whole picture, the box tight around all of it."""

    class_id: int
    mask: Mask
    box_xywh_px: BoxXYWH
    texture: NDArray[np.uint8]


def draw_demo_splits(
    image_root: Path, seed: int = 0, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL
) -> dict[str, SplitContent]:
    """Draw the labelled pictures to `image_root/{train,val}/*.png`.

    Returns:
        Both splits; boxes are exact to a quarter of a pixel and enclose all of a shape, what others hide of it
        too.

    Raises:
        MachineError: the folder cannot be written.
    """
    categories = tuple(Category(index, name) for index, name in enumerate(CLASS_HUES, start=1))
    splits: dict[str, SplitContent] = {}
    first_id = 1
    for split, num_images in (("train", num_train), ("val", num_val)):
        images: list[ImageRecord] = []
        annotations: list[Annotation] = []
        for image_id in range(first_id, first_id + num_images):
            rng = random.Random(f"{seed}/{image_id}")  # noqa: S311 - no secret
            picture, shapes = _draw_picture(rng, _NONE if image_id % _EMPTY_EVERY == 0 else _SOME)
            record = ImageRecord(image_id, f"{split}/{image_id:04d}.png", picture.width, picture.height)
            _save(picture, image_root / record.file_name)
            images.append(record)
            for shape in shapes:
                area = shape.box_xywh_px[2] * shape.box_xywh_px[3]
                number = len(annotations) + 1
                annotations.append(Annotation(number, image_id, shape.class_id, shape.box_xywh_px, area, False))
        first_id += num_images
        annotation_set = AnnotationSet(tuple(images), tuple(annotations), categories)
        splits[split] = SplitContent(annotation_set, image_root, count_findings(annotation_set))
    return splits


def draw_unlabelled(folder: Path, seed: int = 0, num_images: int = NUM_UNLABELLED) -> list[Path]:
    """Draw pictures without annotations to `folder/demo-N.png`, for trying `predict`.

    Raises:
        DataError: the folder holds other files, which are not ours to mix with.
        MachineError: the folder cannot be written.
    """
    paths = [folder / f"demo-{index}.png" for index in range(1, num_images + 1)]
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {p.name for p in paths}):
        raise DataError("holds other files than the demo pictures", where=str(folder))
    for index, path in enumerate(paths):
        picture, _ = _draw_picture(random.Random(f"{seed}/unlabelled/{index}"), _MANY)  # noqa: S311
        _save(picture, path)
    return paths


def _save(picture: Image.Image, path: Path) -> None:
    with machine_errors(path, "write a picture"):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, format="PNG", compress_level=6)


def _draw_picture(rng: random.Random, weights: tuple[int, ...]) -> tuple[Image.Image, list[_Shape]]:
    width, height = rng.choice(_SIZES)
    canvas = _background(rng, width, height)
    shapes: list[_Shape] = []
    for _ in range(rng.choices(range(len(weights)), weights)[0]):
        for _attempt in range(25):
            shape = _random_shape(rng, width, height)
            if _fits(shapes, shape):
                shapes.append(shape)
                break
    for shape in shapes:
        alpha = shape.mask[..., None].astype(np.int32)
        canvas = ((canvas * (255 - alpha) + shape.texture * alpha + 127) // 255).astype(np.uint8)
    return Image.fromarray(canvas), shapes


def _fits(below: list[_Shape], above: _Shape) -> bool:
    """Tell whether every shape below stays visible enough when `above` is laid over all of them."""
    hidden = above.mask > 127
    for shape in reversed(below):
        own = shape.mask > 127
        if (own & hidden).sum() > _MAX_COVERED * own.sum() or _box_iou(shape.box_xywh_px, above.box_xywh_px) > _MAX_IOU:
            return False
        hidden |= own
    return True


def _box_iou(box_a_xywh_px: BoxXYWH, box_b_xywh_px: BoxXYWH) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = box_a_xywh_px, box_b_xywh_px
    shared = max(min(ax + aw, bx + bw) - max(ax, bx), 0) * max(min(ay + ah, by + bh) - max(ay, by), 0)
    return shared / (aw * ah + bw * bh - shared)


def _random_shape(rng: random.Random, width: int, height: int) -> _Shape:
    class_id = rng.randrange(len(CLASS_HUES)) + 1
    name = list(CLASS_HUES)[class_id - 1]
    share = rng.uniform(0.16, 0.25) if rng.random() < 0.15 else rng.uniform(0.25, 0.58)
    diameter = round(share * min(width, height) * _SCALE)
    outline = _outline(name, rng, diameter / 2)
    reach = math.ceil(max(max(abs(x), abs(y)) for polygon in outline for x, y in polygon)) + 2
    centre_x = rng.randint(reach, width * _SCALE - reach)
    centre_y = rng.randint(reach, height * _SCALE - reach)
    large = Image.new("L", (width * _SCALE, height * _SCALE), 0)
    draw = ImageDraw.Draw(large)
    for fill, polygon in zip((255, 0), outline, strict=False):
        draw.polygon([(round(centre_x + x), round(centre_y + y)) for x, y in polygon], fill=fill)
    left, top, right, bottom = large.getbbox() or (0, 0, 0, 0)
    box = (left / _SCALE, top / _SCALE, (right - left) / _SCALE, (bottom - top) / _SCALE)
    mask = np.asarray(large.reduce(_SCALE))
    return _Shape(class_id, mask, box, _shape_texture(rng, name, mask))


def _outline(name: str, rng: random.Random, radius: float) -> list[list[tuple[float, float]]]:
    """Return the polygons of a shape around (0, 0): its outline, then its hole if it has one."""
    angle = math.radians(rng.uniform(-20, 20))
    if name == "circle":
        return [_regular(radius, 64, angle)]
    if name == "ring":
        return [_regular(radius, 64, angle), _regular(radius * rng.uniform(0.5, 0.6), 64, angle)]
    if name == "square":
        return [_regular(radius * 1.15, 4, angle + math.pi / 4)]
    if name == "triangle":
        return [_regular(radius * 1.15, 3, angle - math.pi / 2)]
    if name == "star":
        outer = _regular(radius * 1.15, 5, angle - math.pi / 2)
        inner = _regular(radius * 0.5, 5, angle - math.pi * 0.3)
        return [[point for pair in zip(outer, inner, strict=True) for point in pair]]
    arm = radius * rng.uniform(0.28, 0.36)
    corners = [(arm, -radius), (arm, -arm), (radius, -arm)]
    # The cross is one arm's three corners, turned by quarters.
    cross = [point for quarter in range(4) for point in _turned(corners, quarter * math.pi / 2)]
    return [_turned(cross, angle)]


def _regular(radius: float, num_corners: int, first_angle: float) -> list[tuple[float, float]]:
    angles = (first_angle + 2 * math.pi * corner / num_corners for corner in range(num_corners))
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _turned(points: list[tuple[float, float]], angle: float) -> list[tuple[float, float]]:
    sine, cosine = math.sin(angle), math.cos(angle)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in points]


def _colour(hue: float, saturation: float, value: float) -> NDArray[np.int32]:
    return np.array([round(255 * part) for part in colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)], np.int32)


def _shape_texture(rng: random.Random, name: str, mask: Mask) -> NDArray[np.uint8]:
    """Return the colours of a shape over the whole picture: its class's hue mostly, shaded, plain or patterned."""
    base_hue = rng.choice(list(CLASS_HUES.values())) if rng.random() < _OTHER_HUE_RATE else CLASS_HUES[name]
    colour = _colour(base_hue + rng.uniform(-12, 12), rng.uniform(0.62, 0.9), rng.uniform(0.75, 0.98))
    rows, columns = np.indices(mask.shape, dtype=np.int32)
    kind = rng.choice(("plain", "plain", "stripes", "dots"))
    period = rng.randint(5, 8)
    if kind == "stripes":
        dark = (rows + columns * rng.choice((-1, 1))) % period < period // 2
    elif kind == "dots":
        dark = ((rows % period) - period // 2) ** 2 + ((columns % period) - period // 2) ** 2 <= 2
    else:
        dark = np.zeros(mask.shape, dtype=bool)
    light = 256 - rows * 40 // mask.shape[0] - np.where(dark, 46, 0)
    edge = np.asarray(Image.fromarray(mask).filter(_EDGE_FILTER))
    light = np.where(edge < 250, light * 3 // 4, light)
    texture: NDArray[np.uint8] = (colour * light[..., None] // 256).astype(np.uint8)
    return texture


def _background(rng: random.Random, width: int, height: int) -> NDArray[np.uint8]:
    """Draw soft blotches of two muted colours with a fine grain."""
    hue, value = rng.uniform(0, 360), rng.uniform(0.35, 0.9)
    first = _colour(hue, rng.uniform(0.05, 0.22), value)
    second = _colour(hue + rng.uniform(-60, 60), rng.uniform(0.05, 0.22), min(1.0, value + rng.uniform(-0.2, 0.2)))
    coarse = Image.frombytes("L", (5, 5), rng.randbytes(25))
    blend = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int32)[..., None]
    grain = np.frombuffer(rng.randbytes(width * height), np.uint8).reshape(height, width, 1).astype(np.int32) % 9 - 4
    pixels = (first * (255 - blend) + second * blend) // 255 + grain
    background: NDArray[np.uint8] = pixels.clip(0, 255).astype(np.uint8)
    return background

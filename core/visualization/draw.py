"""Pictures with boxes on them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Color = tuple[int, int, int]
PixelBox = tuple[int, int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_ALL_HEIGHTS = "Ágj"

_WHITE: Color = (255, 255, 255)
_BLACK: Color = (16, 16, 16)
_GAP_COLOR: Color = (32, 32, 32)

# Distinct hues first, as people tell them apart; the classes after these walk round the colour circle.
_FIRST_COLORS: tuple[Color, ...] = (
    (230, 57, 70),
    (29, 122, 214),
    (46, 160, 67),
    (255, 176, 0),
    (142, 68, 201),
    (0, 176, 185),
    (255, 122, 26),
    (233, 76, 161),
    (132, 190, 28),
    (150, 91, 50),
)
_GOLDEN_RATIO = 0.618034
NUM_DISTINCT_COLORS = len(_FIRST_COLORS)


def class_color(label: int) -> Color:
    """Return the RGB colour of a class, the same in every picture; neighbouring labels differ clearly."""
    if label < len(_FIRST_COLORS):
        return _FIRST_COLORS[label]
    index = label - len(_FIRST_COLORS)
    return hsv_color((index * _GOLDEN_RATIO) % 1, (0.9, 0.65)[index % 2], (0.95, 0.75)[index // 2 % 2])


def hsv_color(hue: float, saturation: float, value: float) -> Color:
    """Return the RGB colour of a hue, saturation and value in [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    image: Image.Image,
    boxes_xyxy_px: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    class_names: Sequence[str],
) -> Image.Image:
    """Draw boxes with their class names on a copy of an image; lines and letters grow with the image.

    Args:
        image: RGB.
        boxes_xyxy_px: (N, 4) in pixels of the image; what is outside is not drawn.
        labels: (N,) positions in `class_names`.
        scores: (N,) in [0, 1], written behind the name; the surest is on top. None for annotations.
        class_names: of all classes.
    """
    canvas = image.convert("RGB")  # a copy, also of an RGB image
    draw = ImageDraw.Draw(canvas)
    line_width = line_width_of(canvas)
    font = load_font(font_size_of(canvas))
    # The surest come first: they choose the places of their chips, and are drawn last, on top of the others.
    order = range(len(labels)) if scores is None else scores.argsort(descending=True, stable=True).tolist()
    chips: list[tuple[PixelBox, str, Color]] = []
    outlines: list[tuple[PixelBox, Color]] = []
    for row in order:
        box = on_canvas(boxes_xyxy_px[row].tolist(), canvas.size)
        if box[2] < box[0] or box[3] < box[1]:
            continue
        label = int(labels[row])
        text = printable(class_names[label]) + ("" if scores is None else f" {float(scores[row]):.2f}")
        size = chip_size(draw, text, font, line_width)
        place = place_chip(box, size, canvas.size, [chip for chip, _, _ in chips])
        chips.append((place, text, class_color(label)))
        outlines.append((box, class_color(label)))
    for box, color in reversed(outlines):
        draw_outline(draw, box, color, line_width)
    for place, text, color in reversed(chips):
        draw_chip(draw, text, place, color, font)
    return canvas


def side_by_side(left: Image.Image, right: Image.Image, captions: tuple[str, str]) -> Image.Image:
    """Put two pictures of one size next to each other, such as ground truth and prediction, with captions above."""
    font_size = font_size_of(left)
    font = load_font(font_size)
    gap, header = max(2, font_size // 3), round(font_size * 1.8)
    canvas = Image.new("RGB", (left.width + gap + right.width, max(left.height, right.height) + header), _GAP_COLOR)
    draw = ImageDraw.Draw(canvas)
    for picture, x, caption in ((left, 0, captions[0]), (right, left.width + gap, captions[1])):
        canvas.paste(picture, (x, header))
        draw.text((x + gap, header / 2), printable(caption), fill=_WHITE, font=font, anchor="lm")
    return canvas


def line_width_of(image: Image.Image) -> int:
    """Return how wide lines on an image are, in pixels."""
    return max(1, round(min(image.size) / 240))


def font_size_of(image: Image.Image) -> int:
    """Return how large letters on an image are, in pixels."""
    return min(max(11, round(min(image.size) / 32)), 96)


@lru_cache(maxsize=16)
def load_font(size: int) -> Font:
    """Return the font that all pictures use."""
    return ImageFont.load_default(size)


def printable(text: str) -> str:
    """Return the text on one line, without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)


def on_canvas(box_xyxy_px: Sequence[float], size: tuple[int, int]) -> PixelBox:
    """Return the first and last column and row of pixels of a box that lie on the canvas."""
    left, top, right, bottom = box_xyxy_px
    return max(0, round(left)), max(0, round(top)), min(size[0], round(right)) - 1, min(size[1], round(bottom)) - 1


def draw_outline(
    draw: ImageDraw.ImageDraw, box: PixelBox, color: Color, line_width: int, *, dashed: bool = False
) -> None:
    """Draw a box inside its edges, with a thin dark frame outside that keeps the line visible on any background."""
    if dashed:
        dashes = _dashes(box, line_width)
        if line_width > 1:
            for left, top, right, bottom in dashes:
                draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=_BLACK)
        for dash in dashes:
            draw.rectangle(dash, fill=color)
        return
    left, top, right, bottom = box
    if line_width > 1:
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_BLACK, width=1)
    draw.rectangle(box, outline=color, width=line_width)


def _dashes(box: PixelBox, line_width: int) -> list[PixelBox]:
    """Return the dashes along the edges of a box, as long as the gaps between them; corners are dashes."""
    left, top, right, bottom = box

    def along(first: int, last: int) -> list[tuple[int, int]]:
        length = last - first + 1
        if length <= 4 * line_width:
            return [(first, last)]
        num_parts = 2 * max(1, round(length / (8 * line_width))) + 1
        edges = [first + round(length * part / num_parts) for part in range(num_parts + 1)]
        return [(edges[part], edges[part + 1] - 1) for part in range(0, num_parts, 2)]

    thick_x, thick_y = min(line_width - 1, right - left), min(line_width - 1, bottom - top)
    across = [(a, y, b, y + thick_y) for a, b in along(left, right) for y in (top, bottom - thick_y)]
    down = [(x, a, x + thick_x, b) for a, b in along(top, bottom) for x in (left, right - thick_x)]
    return across + down


def chip_size(draw: ImageDraw.ImageDraw, text: str, font: Font, line_width: int) -> tuple[int, int]:
    """Return width and height of a chip; the height is that of all letters, so that chips are equally high."""
    padding = max(2, line_width)
    left, _, right, _ = draw.textbbox((0, 0), text, font=font)
    _, top, _, bottom = draw.textbbox((0, 0), _ALL_HEIGHTS, font=font)
    return round(right - left) + 2 * padding, round(bottom - top) + 2 * padding


def place_chip(box: PixelBox, chip_wh: tuple[int, int], size: tuple[int, int], taken: Sequence[PixelBox]) -> PixelBox:
    """Return where a chip goes: the first free place at its box's edges, kept inside the picture."""
    left, top, right, bottom = box
    width, height = chip_wh
    corners = (
        (left, top - height),
        (left, top),
        (right - width + 1, top - height),
        (right - width + 1, top),
        (left, bottom - height + 1),
        (left, bottom + 1),
    )
    places = []
    for x, y in corners:
        x = max(0, min(x, size[0] - width))
        y = top if y < 0 else y
        y = max(0, min(y, size[1] - height))
        places.append((x, y, x + width - 1, y + height - 1))
    return next((place for place in places if not any(_touch(place, other) for other in taken)), places[0])


def _touch(a: PixelBox, b: PixelBox) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def draw_chip(
    draw: ImageDraw.ImageDraw, text: str, place: PixelBox, color: Color, font: Font, *, edge: Color | None = None
) -> None:
    """Write a text on a filled rectangle, which may have an edge of another colour."""
    draw.rectangle(place, fill=color, outline=edge, width=max(1, (place[3] - place[1]) // 12))
    left, _, right, _ = draw.textbbox((0, 0), text, font=font)
    _, top, _, bottom = draw.textbbox((0, 0), _ALL_HEIGHTS, font=font)
    x = (place[0] + place[2] + 1 - left - right) / 2
    y = (place[1] + place[3] + 1 - top - bottom) / 2
    draw.text((x, y), text, fill=readable_on(color), font=font)


def readable_on(color: Color) -> Color:
    """Return black or white, whichever contrasts more by the relative luminance of WCAG 2."""
    linear = [((v / 255 + 0.055) / 1.055) ** 2.4 if v > 10 else v / 255 / 12.92 for v in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else _WHITE

"""Which queries learn from which label, as a picture: what matching and label augmentation do on one image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from core.config.schema import LabelAugmentationConfig
from core.ops.boxes import cxcywh_to_xyxy, norm_to_px
from core.visualization.draw import (
    NUM_DISTINCT_COLORS,
    Color,
    Font,
    PixelBox,
    chip_size,
    class_color,
    draw_chip,
    draw_outline,
    font_size_of,
    hsv_color,
    line_width_of,
    load_font,
    on_canvas,
    place_chip,
    printable,
)
from core.visualization.recording import LabelMatches

_PAPER: Color = (255, 255, 255)
_INK: Color = (24, 24, 24)
_FAINT: Color = (110, 110, 110)
_QUERIES_A_LINE = 8
_LEAST_LINES = 12  # of the list, beside an image however flat
_TINT = 70  # of 255, how much of a label's colour lies over what it labels


def draw_matches(
    image: Image.Image,
    matches: LabelMatches,
    class_names: Sequence[str],
    policy: LabelAugmentationConfig,
    num_queries: int,
) -> Image.Image:
    """Draw each label and the boxes of the queries that learn from it, a colour for each label, beside their list.

    Labels are tinted areas; queries of labels as annotated have a solid outline, those of repeated labels a dashed
    one and a star behind their number.

    Args:
        image: RGB, as large as it is to be drawn.
        matches: of this image.
        class_names: of all classes.
        policy: of label augmentation, for the explanation.
        num_queries: of the detector, likewise.
    """
    font = load_font(max(12, round(0.75 * font_size_of(image))))
    picture = _draw_boxes(image, matches, font)
    panel = _draw_list(matches, class_names, max(picture.height, _LEAST_LINES * _line_height(font)), font)
    lines = _explain(matches, policy, num_queries)
    margin, line_height = _margin(font), _line_height(font)
    header = margin + len(lines) * line_height
    width = margin + picture.width + margin + panel.width
    width = max(width, *(round(font.getlength(line)) + 2 * margin for line in lines))
    page = Image.new("RGB", (width, header + max(picture.height, panel.height) + margin), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        y = margin // 2 + (number + 0.5) * line_height
        draw.text((margin, y), line, fill=_FAINT if number else _INK, font=font, anchor="lm")
    page.paste(picture, (margin, header))
    page.paste(panel, (picture.width + 2 * margin, header))
    return page


def _explain(matches: LabelMatches, policy: LabelAugmentationConfig, num_queries: int) -> list[str]:
    """Return one or two lines to stand above the picture."""
    num_labels, num_matches = len(matches.labels), len(matches.query_index)
    repeated = "each label once (no label augmentation)"
    if policy.repeat_time is not None:
        repeated = f"each label {policy.repeat_time} times"
    elif policy.repeat_ratio is not None:
        repeated = f"labels repeated up to {policy.repeat_ratio:.0%} of the queries"
    key = "tinted area: label    solid line: the query matched to it"
    if bool((matches.copy_index > 0).any()):
        key += "    dashed line and star: a query matched to a copy of it"
    counts = f"{num_labels} label{'' if num_labels == 1 else 's'}, {num_matches} of {num_queries} queries"
    heading = f"What queries learn from: {counts}; {repeated}; last decoder layer"
    return [heading, key] if num_labels else [heading]


class _Outline(NamedTuple):
    box: PixelBox
    label: int
    text: str
    is_copy: bool


def _draw_boxes(image: Image.Image, matches: LabelMatches, font: Font) -> Image.Image:
    """Return the image with labels and queries on it."""
    picture, width = image.convert("RGB"), line_width_of(image)
    labels = _pixel_boxes(matches.boxes_cxcywh_norm, image)
    colors = _label_colors(len(labels))
    by_area = sorted(range(len(labels)), key=lambda label: _area(labels[label]), reverse=True)
    tint = Image.new("RGBA", picture.size)
    tinting = ImageDraw.Draw(tint)
    for label in by_area:  # the small ones on top
        if _area(labels[label]) > 0:
            tinting.rectangle(labels[label], fill=(*colors[label], _TINT))
    picture.paste(tint, mask=tint)
    draw = ImageDraw.Draw(picture)
    outlines = _outlines(matches, image)
    for outline in sorted(outlines, key=lambda outline: _area(outline.box), reverse=True):
        draw_outline(draw, outline.box, colors[outline.label], width, dashed=outline.is_copy)
    taken: list[PixelBox] = []
    for label in by_area:
        if _area(labels[label]) > 0:
            place = _centred(labels[label], chip_size(draw, str(label + 1), font, width))
            taken.append(place)
            draw_chip(draw, str(label + 1), place, colors[label], font)
    for outline in outlines:
        size = chip_size(draw, outline.text, font, width // 2)
        taken.append(place_chip(outline.box, size, picture.size, taken))
        draw_chip(draw, outline.text, taken[-1], _PAPER, font, edge=colors[outline.label])
    return picture


def _outlines(matches: LabelMatches, image: Image.Image) -> list[_Outline]:
    """Return the queries' boxes, but those wholly outside the image."""
    boxes = _pixel_boxes(matches.query_boxes_cxcywh_norm, image)
    rows = zip(
        boxes,
        matches.label_index.tolist(),
        matches.query_index.tolist(),
        (matches.copy_index > 0).tolist(),
        strict=True,
    )
    return [
        _Outline(box, label, query_text(query, is_copy), is_copy)
        for box, label, query, is_copy in rows
        if _area(box) > 0
    ]


def query_text(query: int, is_copy: bool) -> str:
    """Return a query's number, with a star if it learns from the copy of a label."""
    return f"{query}*" if is_copy else str(query)


def _label_colors(num_labels: int) -> list[Color]:
    """Return a colour for each label: those of classes as long as they are distinct, then hues all round the circle."""
    if num_labels <= NUM_DISTINCT_COLORS:
        return [class_color(label) for label in range(num_labels)]
    # Steps of about 0.4 of the circle that meet every hue once; neighbours in hue differ in brightness.
    step = next(step for step in range(round(0.38 * num_labels), num_labels) if math.gcd(step, num_labels) == 1)
    hues = [label * step % num_labels for label in range(num_labels)]
    return [hsv_color(hue / num_labels, (0.9, 0.75, 0.6)[hue % 3], (0.95, 0.6, 0.9)[hue % 3]) for hue in hues]


class _Line(NamedTuple):
    number: str
    color: Color
    name: str
    queries: str


def _list_lines(matches: LabelMatches, class_names: Sequence[str]) -> list[_Line]:
    """Return the lines of the list: one for each label, more where its queries do not fit on one."""
    lines: list[_Line] = []
    colors = _label_colors(len(matches.labels))
    for label, class_index in enumerate(matches.labels.tolist()):
        texts = [query_text(query, copy > 0) for query, copy in matches.of(label)]
        for first in range(0, max(1, len(texts)), _QUERIES_A_LINE):
            queries = ", ".join(texts[first : first + _QUERIES_A_LINE]) or "none"
            queries += "," if first + _QUERIES_A_LINE < len(texts) else ""
            start = (str(label + 1), printable(class_names[class_index])) if first == 0 else ("", "")
            lines.append(_Line(start[0], colors[label], start[1], queries))
    return lines


def _draw_list(matches: LabelMatches, class_names: Sequence[str], height: int, font: Font) -> Image.Image:
    """Return a panel of that height with the queries of each label, in as many columns as it takes."""
    lines = _list_lines(matches, class_names) or [_Line("", _PAPER, "no labels", "")]
    gap, line_height = _margin(font), _line_height(font)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    chips = [chip_size(measure, line.number, font, gap // 6) for line in lines]
    number_width = max(width for width, _ in chips)
    name_width, queries_width = (
        max(round(font.getlength(text)) for text in texts)
        for texts in ([line.name for line in lines], [line.queries for line in lines])
    )
    column_width = number_width + name_width + queries_width + 3 * gap
    per_column = max(1, height // line_height)
    panel = Image.new("RGB", (column_width * -(-len(lines) // per_column), height), _PAPER)
    draw = ImageDraw.Draw(panel)
    for row, (line, (_, chip_height)) in enumerate(zip(lines, chips, strict=True)):
        x, y = row // per_column * column_width, (row % per_column + 0.5) * line_height
        top = round(y - chip_height / 2)
        if line.number:
            draw_chip(draw, line.number, (x, top, x + number_width - 1, top + chip_height - 1), line.color, font)
        x += number_width + gap // 2
        draw.text((x, y), line.name, fill=_FAINT, font=font, anchor="lm")
        draw.text((x + name_width + gap, y), line.queries, fill=_INK, font=font, anchor="lm")
    return panel


def _pixel_boxes(boxes_cxcywh_norm: Tensor, image: Image.Image) -> list[PixelBox]:
    size_hw = torch.tensor([[image.height, image.width]])
    boxes_xyxy_px = norm_to_px(cxcywh_to_xyxy(boxes_cxcywh_norm)[None], size_hw)[0]
    return [on_canvas(box, image.size) for box in boxes_xyxy_px.tolist()]


def _area(box: PixelBox) -> int:
    """Return the pixels in a box, 0 where nothing of it is on the canvas."""
    left, top, right, bottom = box
    return max(0, right - left + 1) * max(0, bottom - top + 1)


def _centred(box: PixelBox, size_wh: tuple[int, int]) -> PixelBox:
    left, top = (box[0] + box[2] - size_wh[0]) // 2, (box[1] + box[3] - size_wh[1]) // 2
    return left, top, left + size_wh[0] - 1, top + size_wh[1] - 1


def _line_height(font: Font) -> int:
    return round(1.6 * font.getlength("m"))


def _margin(font: Font) -> int:
    return round(font.getlength("m"))

"""Where queries look, decoder layer by decoder layer, as a picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from core.visualization.draw import printable
from core.visualization.recording import AttentionRecord, DenseLayer, QueryAnswers, SparseLayer

_DPI = 130
_LONG_SIDE_IN = 3.0
_LEFT_IN, _TOP_IN, _BOTTOM_IN, _GAP_IN, _BELOW_IN = 1.1, 0.75, 0.6, 0.1, 0.32
_CELL_PX = 800  # more of an image than a cell can show
_LEVELS = (("o", "#1d7ad6"), ("s", "#e63946"), ("D", "#2ea043"), ("^", "#8e44c9"))
_HEAT, _ANSWER, _ROI, _VIEW = "#e8430a", "#ffb000", "#101010", "#2b2b2b"
# Where the markers of 1, 3 or 4 levels lie in a bin, whose middle all of them stand for.
_PLACES = {
    1: ((0.5, 0.5),),
    3: ((0.26, 0.3), (0.74, 0.3), (0.5, 0.72)),
    4: ((0.26, 0.28), (0.74, 0.28), (0.26, 0.74), (0.74, 0.74)),
}
_LEAST_VIEW = 0.15  # of the image: how near a sparse layer's box is looked at

Box = tuple[float, float, float, float]
"""xyxy in pixels of the image."""


def draw_attention(
    image: Image.Image, record: AttentionRecord, answers: QueryAnswers, class_names: Sequence[str]
) -> Image.Image:
    """Draw a row for each query and a column for each decoder layer; attention is the mean over heads.

    A dense layer: its attention map over the image. A sparse layer, seen from near: the RoI that it looks at, and in
    each bin a marker for each feature level, whose area is the attention that the token gets; below, each level's
    share. Both: the box that the layer answers with.

    Args:
        image: RGB, as the model saw it, of any size.
        record: of a batch of this image alone.
        answers: of the queries to draw, at least one.
        class_names: of all classes.
    """
    photo = _Photo(image)
    figure, grid = _make_grid(photo.aspect, len(answers.query_index), len(record.layers))
    size = torch.tensor([image.width, image.height] * 2)
    to_image = size / record.sizes_hw[0].cpu().flip(-1).repeat(2)
    for row, axes_of_query in enumerate(grid):
        query, boxes = int(answers.query_index[row]), answers.boxes_xyxy_norm[:, row] * size
        texts = [
            f"{printable(class_names[label])} {score:.2f}"
            for label, score in zip(answers.labels[:, row].tolist(), answers.scores[:, row].tolist(), strict=True)
        ]
        _write(axes_of_query[0], -0.04, 0.5, f"query {query}\n{texts[-1]}", ha="right", va="center")
        rois = {
            index: layer.boxes_xyxy_px[0, query].cpu() * to_image
            for index, layer in enumerate(record.layers)
            if isinstance(layer, SparseLayer)
        }
        near = photo.near([*rois.values(), *(boxes[index] for index in rois)]) if rois else None
        for index, (axes, layer) in enumerate(zip(axes_of_query, record.layers, strict=True)):
            weights = layer.weights[0, :, query].mean(0).cpu()
            if isinstance(layer, DenseLayer):
                photo.show(axes, photo.whole)
                _draw_map(axes, weights, (layer.stride * to_image).tolist())
                if near is not None:
                    axes.add_patch(_outline(near, _VIEW, linewidth=0.8))
            elif near is not None:
                photo.show(axes, near)
                _draw_roi(axes, weights, rois[index].tolist(), layer.strides)
            axes.add_patch(_outline(boxes[index].tolist(), _ANSWER, linewidth=2))
            _write(axes, 0.02, 0.975, texts[index], va="top", boxed=True)
            if row == 0:
                kind = "all cells" if isinstance(layer, DenseLayer) else "its own RoI"
                axes.set_title(f"decoder layer {index + 1}: {kind}", fontsize=9)
    _explain(figure, record)
    return _rendered(figure)


def _make_grid(aspect: float, num_rows: int, num_columns: int) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its axes, row by row, each of that width / height."""
    cell_w, cell_h = min(1.0, aspect) * _LONG_SIDE_IN, min(1.0, 1 / aspect) * _LONG_SIDE_IN
    width = _LEFT_IN + num_columns * (cell_w + _GAP_IN)
    height = _TOP_IN + num_rows * (cell_h + _BELOW_IN) + _BOTTOM_IN
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    grid = []
    for row in range(num_rows):
        bottom = height - _TOP_IN - row * (cell_h + _BELOW_IN) - cell_h
        lefts = [_LEFT_IN + column * (cell_w + _GAP_IN) for column in range(num_columns)]
        grid.append([figure.add_axes((x / width, bottom / height, cell_w / width, cell_h / height)) for x in lefts])
    return figure, grid


class _Photo:
    """The image behind all cells of a grid, in pale grey.

    Args:
        image: RGB.

    Attributes:
        aspect: width / height of a cell, that of the image as long as texts fit below.
        whole: the part of the plane with the whole image and that aspect, in pixels of the image.
    """

    def __init__(self, image: Image.Image) -> None:
        self._grey = image.convert("L")
        self.aspect = max(0.75, min(2.0, image.width / image.height))
        self.whole = self._fitted(torch.zeros(2), torch.tensor(image.size))

    def near(self, boxes_xyxy_px: Sequence[Tensor]) -> Box:
        """Return the part of the plane in which boxes are seen from near."""
        boxes, least = torch.stack(list(boxes_xyxy_px)), _LEAST_VIEW * torch.tensor(self._grey.size)
        low, high = boxes[:, :2].amin(0), boxes[:, 2:].amax(0)
        centre, size = (low + high) / 2, torch.maximum(1.15 * (high - low), least)
        return self._fitted(centre - size / 2, centre + size / 2)

    def _fitted(self, low: Tensor, high: Tensor) -> Box:
        """Widen a part of the plane to the cells' aspect, about its centre."""
        (x, y), (width, height) = ((low + high) / 2).tolist(), (high - low).tolist()
        width, height = max(width, height * self.aspect), max(height, width / self.aspect)
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2

    def show(self, axes: Axes, view: Box) -> None:
        """Show a part of the plane; what lies outside the image is plain."""
        axes.set(xticks=[], yticks=[], facecolor="#c8ccd2")
        width, height = self._grey.size
        part = max(0.0, view[0]), max(0.0, view[1]), min(float(width), view[2]), min(float(height), view[3])
        if part[0] < part[2] and part[1] < part[3]:
            shrink = max(1.0, (part[2] - part[0]) / _CELL_PX, (part[3] - part[1]) / _CELL_PX)
            size = (max(1, round((part[2] - part[0]) / shrink)), max(1, round((part[3] - part[1]) / shrink)))
            grey = np.asarray(self._grey.resize(size, Image.Resampling.BILINEAR, box=part)) / 255
            pale = np.repeat(0.4 + 0.6 * grey[..., None], 3, axis=-1)
            axes.imshow(pale, extent=(part[0], part[2], part[3], part[1]), interpolation="bilinear", aspect="auto")
        axes.set_xlim(view[0], view[2])
        axes.set_ylim(view[3], view[1])


def _draw_map(axes: Axes, weights: Tensor, cell_wh: Sequence[float]) -> None:
    """Draw a dense layer's weights (H, W), whose cells are that many pixels wide and high."""
    limits = axes.get_xlim(), axes.get_ylim()
    rows, columns = weights.shape
    heat = np.empty((rows, columns, 4))
    heat[..., :3] = to_rgb(_HEAT)
    heat[..., 3] = 0.8 * (weights / weights.max()).numpy()
    extent = (0, columns * cell_wh[0], rows * cell_wh[1], 0)
    axes.imshow(heat, extent=extent, interpolation="bilinear", aspect="auto")
    axes.set(xlim=limits[0], ylim=limits[1])
    text = f"hottest of {rows} x {columns} cells: {float(weights.max()):.1%} (even: {1 / (rows * columns):.1%})"
    _write(axes, 0.5, -0.02, text, ha="center", va="top")


def _draw_roi(axes: Axes, weights: Tensor, roi_xyxy_px: Sequence[float], strides: Sequence[int]) -> None:
    """Draw a sparse layer's RoI, its bins, and the weights (levels, rows, columns) of their tokens."""
    num_levels, num_bins = weights.shape[0], weights.shape[-1]
    left, top, right, bottom = roi_xyxy_px
    bin_w, bin_h = (right - left) / num_bins, (bottom - top) / num_bins
    for line in range(1, num_bins):
        axes.plot([left + line * bin_w] * 2, [top, bottom], color=_ROI, linewidth=0.4, alpha=0.6)
        axes.plot([left, right], [top + line * bin_h] * 2, color=_ROI, linewidth=0.4, alpha=0.6)
    axes.add_patch(_outline(roi_xyxy_px, _ROI, linewidth=1.4, linestyle="--"))
    points_per_px = _points_per_px(axes)
    side = min(bin_w * points_per_px[0], bin_h * points_per_px[1]) / (1 if num_levels == 1 else 2)
    areas = max(2.0, 0.95 * side) ** 2 * (weights / weights.max()).numpy()
    columns, rows = np.meshgrid(np.arange(num_bins), np.arange(num_bins))
    for level, ((x, y), (marker, color)) in enumerate(zip(_PLACES[num_levels], _LEVELS, strict=False)):
        axes.scatter(
            left + (columns + x) * bin_w,
            top + (rows + y) * bin_h,
            s=areas[level],
            marker=marker,
            color=color,
            edgecolors="white",
            linewidths=0.4,
            zorder=3,  # above the boxes
        )
        text = (
            f"{'stride ' if level == 0 and num_levels < 4 else ''}{strides[level]}: {float(weights[level].sum()):.0%}"
        )
        _write(axes, (level + 0.5) / num_levels, -0.02, text, ha="center", va="top", color=color)


def _points_per_px(axes: Axes) -> tuple[float, float]:
    """Return how many points (1/72 inch) a pixel of the image is wide and high."""
    (left, top), (right, bottom) = axes.transData.transform([(0, 0), (1, 1)])
    return 72 / _DPI * abs(right - left), 72 / _DPI * abs(bottom - top)


def _outline(box_xyxy: Sequence[float], color: str, *, linewidth: float, linestyle: str = "-") -> Rectangle:
    left, top, right, bottom = box_xyxy
    return Rectangle(
        (left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=linewidth, linestyle=linestyle
    )


def _write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    ha: str = "left",
    va: str,
    color: str = "#181818",
    boxed: bool = False,
) -> None:
    """Write a text, literally, at a place that counts from 0 to 1 along the axes."""
    box = {"facecolor": "white", "edgecolor": _ANSWER, "boxstyle": "square,pad=0.2"} if boxed else None
    axes.text(x, y, text, ha=ha, va=va, color=color, fontsize=8, transform=axes.transAxes, bbox=box, parse_math=False)


def _explain(figure: Figure, record: AttentionRecord) -> None:
    """Write the heading and the legend."""
    width, height = figure.get_size_inches()
    num_heads = record.layers[0].weights.shape[1]
    entries = [Line2D([], [], color=_ANSWER, linewidth=2, label="box the layer answers with")]
    heading = [f"Where queries look (mean of {num_heads} heads)"]
    if any(isinstance(layer, DenseLayer) for layer in record.layers):
        entries.append(Line2D([], [], color=_HEAT, marker="s", linestyle="", label="attention to cells"))
    sparse = next((layer for layer in record.layers if isinstance(layer, SparseLayer)), None)
    if sparse is not None:
        heading.append(
            "A marker's area is the attention to a bin's token; the levels' markers lie side by side in the bin."
        )
        entries.insert(1, Line2D([], [], color=_ROI, linewidth=1.4, linestyle="--", label="RoI it looks at"))
        entries.append(Line2D([], [], color=_VIEW, linewidth=1, label="part seen from near at the right"))
        for (marker, color), stride in zip(_LEVELS, sparse.strides, strict=False):
            entries.append(Line2D([], [], color=color, marker=marker, linestyle="", label=f"stride {stride}"))
    figure.text(0.1 / width, 1 - 0.1 / height, heading[0], va="top", fontsize=11, weight="bold")
    figure.text(0.1 / width, 1 - 0.32 / height, " ".join(heading[1:]), va="top", fontsize=8)
    columns = min(len(entries), max(1, int(width / 1.75)))
    figure.legend(handles=entries, loc="lower center", ncols=columns, fontsize=8, frameon=False)


def _rendered(figure: Figure) -> Image.Image:
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a class name in a script that the font lacks
        FigureCanvasAgg(figure).print_figure(picture, format="png")
    return Image.open(picture).convert("RGB")

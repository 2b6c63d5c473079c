"""What a data set holds, as pictures: boxes per class, sizes and shapes of boxes, objects per image."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from core.annotations.checks.report import CheckReport
from core.annotations.checks.statistics import LARGE_SIDE_PX, SMALL_SIDE_PX, Histogram, SplitStatistics
from core.files import write_atomic

MAX_CLASSES = 80
"""How many classes a picture shows at most, those with the most boxes."""

_COLORS = ("#1d7ad6", "#ffb000", "#2ea043", "#8e44c9", "#e63946")
_LONGEST_NAME = 28
_SHARE = "share of the split's boxes"
_Statistics = Mapping[str, SplitStatistics]


def draw_statistics(report: CheckReport, folder: Path) -> list[Path]:
    """Write `boxes-per-class.png`, `box-sizes.png` and `objects-per-image.png`.

    Args:
        report: its statistics are drawn, a colour for each split.
        folder: is made if need be; pictures of these names are replaced.

    Returns:
        The pictures; none where the report has no statistics.

    Raises:
        MachineError: the folder cannot be written.
    """
    pictures: dict[str, Callable[[_Statistics], Figure]] = {
        "boxes-per-class": _classes,
        "box-sizes": _sizes,
        "objects-per-image": _objects,
    }
    if not report.statistics:
        return []
    return [_save(draw(report.statistics), folder / f"{name}.png") for name, draw in pictures.items()]


def _save(figure: Figure, path: Path) -> Path:
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing", category=UserWarning)
        FigureCanvasAgg(figure).print_figure(picture, format="png")
    write_atomic(path, picture.getvalue())
    return path


def _classes(statistics: _Statistics) -> Figure:
    """Draw a group of bars for each class, those with the most boxes on top."""
    counts: dict[str, dict[str, int]] = {}
    for split, one in statistics.items():
        for entry in one.classes:
            counts.setdefault(entry.name, {})[split] = entry.num_boxes
    names = [name for name, values in counts.items() if any(values.values())]
    names.sort(key=lambda name: [-counts[name].get(split, 0) for split in statistics])
    shown = names[:MAX_CLASSES]
    step = 0.22 if len(shown) > 12 else 0.45
    figure = Figure(figsize=(9, 1.4 + step * max(2, len(shown))), dpi=120, layout="constrained")
    axes = figure.subplots()
    thickness = 0.8 / len(statistics)
    largest = max((count for values in counts.values() for count in values.values()), default=0)
    least = min((count for values in counts.values() for count in values.values() if count), default=1)
    is_wide = largest >= 100 * least
    for rank, (split, color) in enumerate(zip(statistics, _colors(statistics), strict=True)):
        values = [counts[name].get(split, 0) for name in shown]
        places = np.arange(len(shown)) - 0.4 + thickness * (rank + 0.5)
        bars = axes.barh(places, values, thickness, color=color, label=f"{_legend(split)}: {sum(values):,}")
        if step * thickness > 0.1:
            axes.bar_label(bars, [f"{value:,}" for value in values], padding=3, fontsize=8)
    if is_wide:
        axes.set_xscale("log")
        axes.set_xlim(left=0.7)
    axes.set_yticks(range(len(shown)), [_plain(name) for name in shown], parse_math=False)
    axes.tick_params(axis="y", labelsize=8 if len(shown) > 12 else 10, length=0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_title("boxes per class" + _left_out(len(counts), len(names), len(shown)))
    axes.margins(x=0.12)
    _finish(axes, "boxes" + (", logarithmic" if is_wide else ""))
    figure.legend(loc="outside upper right", frameon=False, ncols=len(statistics))
    return figure


def _left_out(num_classes: int, num_with_boxes: int, num_shown: int) -> str:
    texts = [f"{num_shown} of {num_with_boxes} classes"] if num_shown < num_with_boxes else []
    texts += [f"{num_classes - num_with_boxes} more have none"] if num_with_boxes < num_classes else []
    return f" ({', '.join(texts)})" if texts else ""


def _sizes(statistics: _Statistics) -> Figure:
    """Draw how the boxes' sides and shapes are spread."""
    is_resized = any(one.boxes and one.boxes.side_resized_histogram for one in statistics.values())
    figure = Figure(figsize=(14 if is_resized else 10, 4), dpi=120, layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(1, 3 if is_resized else 2)))
    boxes = {split: one.boxes for split, one in statistics.items()}
    _spread(panels[0], {split: one.side_histogram if one else None for split, one in boxes.items()})
    _limits(panels[0])
    panels[0].set_title("box side")
    _finish(panels[0], "√(width x height), pixels of the file", _SHARE)
    if is_resized:
        _spread(panels[1], {split: one.side_resized_histogram if one else None for split, one in boxes.items()})
        panels[1].set_title("box side as the model sees it")
        _finish(panels[1], "√(width x height), pixels after resizing", _SHARE)
    _spread(panels[-1], {split: one.aspect_histogram if one else None for split, one in boxes.items()})
    panels[-1].axvline(1, color="gray", linewidth=1, linestyle=":")
    panels[-1].set_title("aspect ratio")
    _finish(panels[-1], "width / height", _SHARE)
    return figure


def _spread(axes: Axes, histograms: Mapping[str, Histogram | None]) -> None:
    """Draw histograms with bins of equal ratio as steps, each as shares of its split."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    filled: list[float] = []
    for (split, histogram), color in zip(histograms.items(), _colors(histograms), strict=True):
        if histogram is None:
            continue
        shares = np.array(histogram.counts) / sum(histogram.counts)
        axes.stairs(shares, histogram.edges, color=color, linewidth=1.8, label=_legend(split))
        axes.stairs(shares, histogram.edges, color=color, alpha=0.12, fill=True)
        bins = np.flatnonzero(histogram.counts)
        filled += [histogram.edges[bins[0]], histogram.edges[bins[-1] + 1]]
    if filled:
        axes.set_xlim(min(filled) / 1.2, max(filled) * 1.2)


def _limits(axes: Axes) -> None:
    """Mark what COCO calls small, medium and large."""
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, SMALL_SIDE_PX / 2), max(right, LARGE_SIDE_PX * 2))
    left, right = axes.get_xlim()
    edges = (left, SMALL_SIDE_PX, LARGE_SIDE_PX, right)
    for limit in edges[1:-1]:
        axes.axvline(limit, color="gray", linewidth=1, linestyle="--")
    axes.set_ylim(top=1.12 * axes.get_ylim()[1])
    for start, end, word in zip(edges, edges[1:], ("small", "medium", "large"), strict=False):
        axes.text(
            (start * end) ** 0.5, 0.98, word, transform=axes.get_xaxis_transform(), ha="center", va="top", color="gray"
        )


def _objects(statistics: _Statistics) -> Figure:
    """Draw how many images hold how many objects."""
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (split, one), color in zip(statistics.items(), _colors(statistics), strict=True):
        histogram, spread = one.objects_histogram, one.objects_per_image
        if histogram is None or spread is None:
            continue
        edges = np.array(histogram.edges) - 0.5
        shares = np.array(histogram.counts) / one.num_images / np.diff(edges)
        values = f"mean {spread.mean:.1f}, 95 % up to {spread.percentile_95:.0f}, most {spread.maximum:.0f}"
        axes.stairs(shares, edges, color=color, linewidth=1.8, label=f"{_legend(split)}: {values}")
        axes.stairs(shares, edges, color=color, alpha=0.12, fill=True)
    axes.set_title("objects per image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=-0.5)
    _finish(axes, "objects", "share of the split's images, for each number")
    return figure


def _colors(splits: Mapping[str, object]) -> list[str]:
    return [_COLORS[rank % len(_COLORS)] for rank in range(len(splits))]


def _legend(split: str) -> str:
    return _plain(split).replace("$", r"\$")  # which would begin a formula


def _plain(name: str) -> str:
    """Return a class name as it fits beside a bar: on one line, not too long."""
    shown = "".join(letter if letter.isprintable() else " " for letter in name)
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"


def _finish(axes: Axes, what: str, share: str | None = None) -> None:
    axes.set_xlabel(what)
    axes.set_ylabel(share or "")
    axes.grid(visible=True, axis="x" if share is None else "both", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if share is not None and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)

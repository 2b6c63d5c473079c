"""How a run went, as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from core.files import write_atomic


def plot_training_curves(metrics: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw loss, average precision and learning rate over the epochs of a run, and write the picture as PNG.

    Args:
        metrics: rows of `metrics.jsonl`, their `epoch` counted from 1. Of rows of kind "train" `loss` and `lr` are
            read, of rows of kind "eval" `AP` and `AP50` in `stats`; a value that is absent or null leaves a gap.
        out: the file.

    Raises:
        MachineError: the file cannot be written.
    """
    figure = Figure(figsize=(13, 4), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    loss_axes, ap_axes, rate_axes = figure.subplots(1, 3, width_ratios=(5, 5, 3))
    steps = [row for row in metrics if row.get("kind") == "train"]
    _plot_loss(loss_axes, steps)
    _plot_learning_rate(rate_axes, steps)
    _plot_ap(ap_axes, [row for row in metrics if row.get("kind") == "eval"])
    picture = io.BytesIO()
    canvas.print_figure(picture, format="png")
    write_atomic(out, picture.getvalue())


def _plot_loss(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    epochs, losses = _points(rows, "loss")
    axes.set_title("training loss")
    if losses:
        axes.plot(_spread(epochs), losses, color="#1d7ad6", linewidth=0.8, alpha=0.35, label="each row")
        means = _epoch_means(epochs, losses)
        axes.plot(
            list(means), list(means.values()), color="#1d7ad6", linewidth=2, marker="o", markersize=3, label="epoch"
        )
        axes.set_ylim(bottom=0)
    _finish(axes, has_data=bool(losses))


def _plot_ap(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    flat = [{"epoch": row["epoch"], **row.get("stats", {})} for row in rows]
    axes.set_title("validation")
    has_data = False
    for name, color in (("AP", "#e63946"), ("AP50", "#ffb000")):
        epochs, values = _points(flat, name)
        if values:
            has_data = True
            axes.plot(
                epochs,
                values,
                color=color,
                linewidth=2,
                marker="o",
                markersize=3,
                label=f"{name} (best {max(values):.3f})",
            )
    if has_data:
        axes.set_ylim(0, max(0.05, axes.get_ylim()[1]))
    _finish(axes, has_data=has_data)


def _plot_learning_rate(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    epochs, rates = _points(rows, "lr")
    axes.set_title("learning rate")
    if rates:
        marker = "o" if len(rates) == 1 else None
        axes.plot(
            _spread(epochs),
            rates,
            color="#2ea043",
            linewidth=2,
            marker=marker,
            markersize=3,
            label="all but the backbone",
        )
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _finish(axes, has_data=bool(rates))


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return the epochs and values of the rows in which the value is a finite number."""
    points = [
        (int(row["epoch"]), float(row[name]))
        for row in rows
        if isinstance(row.get(name), (int, float)) and math.isfinite(row[name])
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _spread(epochs: Sequence[int]) -> list[float]:
    """Return where along the axis each row lies: the rows of epoch e fill (e - 1, e] evenly."""
    counts: dict[int, int] = {}
    for epoch in epochs:
        counts[epoch] = counts.get(epoch, 0) + 1
    seen: dict[int, int] = {}
    positions = []
    for epoch in epochs:
        seen[epoch] = seen.get(epoch, 0) + 1
        positions.append(epoch - 1 + seen[epoch] / counts[epoch])
    return positions


def _epoch_means(epochs: Sequence[int], losses: Sequence[float]) -> dict[int, float]:
    """Return the mean loss of each epoch."""
    grouped: dict[int, list[float]] = {}
    for epoch, loss in zip(epochs, losses, strict=True):
        grouped.setdefault(epoch, []).append(loss)
    return {epoch: sum(values) / len(values) for epoch, values in grouped.items()}


def _finish(axes: Axes, *, has_data: bool) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if has_data:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no data yet", ha="center", va="center", transform=axes.transAxes, color="gray")

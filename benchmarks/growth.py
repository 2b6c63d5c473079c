"""How the cost grows with queries, image size and RoI size: training steps and inference, in a figure and a table.

    python benchmarks/growth.py [--model de-detr] [--figure docs/results/growth.png] [--resume]

One of the three is varied, the others stay at 300 queries, 480x640 pixels and 4x4 bins. Measured as in `speed.py`.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image

from cases import (
    BATCH_SIZES,
    Case,
    Results,
    Row,
    add_options,
    chosen,
    describe,
    machine_of,
    middle,
    name_size,
    name_work,
    numbers_of,
    ratio,
    sizes_of,
    time_fresh,
    ways_of,
)
from runs import table

STYLES = {
    "published": ("#8c8c8c", "s"),
    "plain": ("#d1862b", "^"),
    "fast": ("#1f6fb2", "o"),
    "triton": ("#3a8f5c", "D"),
}
AXES = {"queries": "queries", "image": "image, height x width", "RoI": "bins along a side of a RoI"}


class Point(NamedTuple):
    """A row on one of the figure's axes.

    Attributes:
        varied: a key of `AXES`.
        value: what it is varied to.
        row: the case in all ways.
        seconds: of each way that could be measured, round by round.
    """

    varied: str
    value: Any
    row: Row
    seconds: dict[str, list[float]]

    @property
    def case(self) -> Case:
        return next(iter(self.row.cases.values()))

    @property
    def place(self) -> int:
        """Where it is on its axis."""
        return int(self.value[0] * self.value[1]) if self.varied == "image" else int(self.value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "growth")
    parser.add_argument("--model", default="de-detr")
    parser.add_argument("--roi-sizes", help="bins along a side, such as 1,2,4,7")
    parser.add_argument("--figure", type=Path, default=Path("docs/results/growth.png"))
    arguments = parser.parse_args()
    machine = machine_of(arguments)
    results = Results(arguments.results, arguments.resume)
    wanted = {row.name for row in chosen([row for _, _, row in varied_rows(arguments)], arguments.only)}
    points = []
    for varied, value, row in varied_rows(arguments):
        if row.name in wanted:
            measured = results.measure(
                row, machine, lambda row=row: time_fresh(row, machine, arguments.rounds, arguments.max_seconds)
            )
            points.append(Point(varied, value, row, measured["seconds"]))
            print(" | ".join(line_of(points[-1])), file=sys.stderr, flush=True)
    print(describe(machine) + "\n")
    ways = arguments.ways.split(",")
    ratios = [f"{way} / {ways[-1]}" for way in ways[:-1]]
    print(table(["varied", "to", "work", *ratios, *(f"{way} s" for way in ways)], [line_of(each) for each in points]))
    draw(points, arguments.model, arguments.figure)
    print(f"\n{arguments.figure}: {arguments.figure.stat().st_size / 1024:.0f} KB", file=sys.stderr)


def varied_rows(arguments: argparse.Namespace) -> list[tuple[str, Any, Row]]:
    """Return what is varied, to what, and the row to measure; the common case is among them once for each."""
    queries = numbers_of(arguments.queries, "100,300,900")
    sizes = sizes_of(arguments.sizes, "320x427,480x640,640x853,800x1066")
    roi_sizes = numbers_of(arguments.roi_sizes, "1,2,4,7")
    common = {
        "num_queries": 300 if 300 in queries else queries[0],
        "size_hw": (480, 640) if (480, 640) in sizes else sizes[0],
        "roi_resolution": 4 if 4 in roi_sizes else roi_sizes[0],
    }
    sweeps = {"queries": ("num_queries", queries), "image": ("size_hw", sizes), "RoI": ("roi_resolution", roi_sizes)}
    rows = []
    for work, batch_size in BATCH_SIZES.items():
        for varied, (name, values) in sweeps.items():
            for value in values:
                batch = arguments.batch_size or batch_size
                case = Case(arguments.model, "", work, batch_size=batch, **{**common, name: value})
                row = ways_of(case, arguments.ways.split(","))
                rows.append((varied, value, Row(f"{row.name} RoI {case.roi_resolution}", row.cases)))
    return rows


def line_of(point: Point) -> list[str]:
    value = {"image": name_size, "RoI": lambda side: f"{side}x{side}"}.get(point.varied, str)(point.value)
    *others, last = point.row.cases
    ratios = [ratio(point.seconds, way, last) for way in others]
    return [
        point.varied,
        value,
        name_work(point.case),
        *ratios,
        *(middle(point.seconds, way) for way in point.row.cases),
    ]


def draw(points: list[Point], model: str, path: Path) -> None:
    """Draw a row of axes for each work, a column for what is varied; both scales are logarithmic."""
    by_work = {work: [point for point in points if point.case.work == work] for work in BATCH_SIZES}
    by_work = {work: points for work, points in by_work.items() if points}
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9.5, 2.9 * len(by_work) + 0.5), layout="constrained")
        grid = figure.subplots(len(by_work), len(AXES), squeeze=False, sharey="row")
        for axes_row, of_work in zip(grid, by_work.values(), strict=True):
            for axes, varied in zip(axes_row, AXES, strict=True):
                draw_curves(axes, [point for point in of_work if point.varied == varied], AXES[varied])
            axes_row[0].set_ylabel(f"{name_work(of_work[0].case)}\nseconds")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, title=model)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=100)
        # A few colours make a file of a third of the size.
        Image.open(picture).convert("RGB").quantize(64).save(path, optimize=True)


def draw_curves(axes: Axes, points: list[Point], name: str) -> None:
    """Draw the medians of each way over what is varied, with bars from the quickest round to the slowest."""
    for way, (colour, marker) in STYLES.items():
        known = [point for point in points if way in point.seconds]
        if not known:
            continue
        middles = [median(point.seconds[way]) for point in known]
        below = [mid - min(point.seconds[way]) for mid, point in zip(middles, known, strict=True)]
        above = [max(point.seconds[way]) - mid for mid, point in zip(middles, known, strict=True)]
        axes.errorbar(
            [point.place for point in known], middles, yerr=[below, above], color=colour, marker=marker, markersize=4,
            linewidth=1.5, capsize=2, label="published way" if way == "published" else way,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel=name)
    texts = [
        name_size(point.value).replace("x", "\nx ") if point.varied == "image" else point.value for point in points
    ]
    axes.set_xticks([point.place for point in points], texts)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)


if __name__ == "__main__":
    main()

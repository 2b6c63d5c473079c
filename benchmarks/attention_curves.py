"""The same run with the plain and the fast sparse attention: losses side by side, and a picture of them.

    python benchmarks/attention_curves.py [--data DIR] [--out curves.png] [train flags, such as --model dela-conddetr]

Real `dedetr train` commands in float32 on one thread; without --data on the embedded demo set, with its recipe. Both
draw the same dropout, augmentation and order. Rounding alone sets them apart, and grows in training as in any run: how
fast, the plain attention shows against itself on two threads, where sums are added up in another order. Another seed
gives the scale.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from runs import FinishedRun, table, train

ALIKE = ["--precision", "float32", "--workers", "0", "--set", "run.log_every=1"]
VARIANTS = {
    "plain": (1, ["--set", "model.attention=plain"]),
    "fast": (1, ["--set", "model.attention=fast"]),
    "plain, two threads": (2, ["--set", "model.attention=plain"]),
    "plain, another seed": (1, ["--set", "model.attention=plain", "--seed", "7"]),
}
COLOURS = dict(zip(VARIANTS, ("#1d7ad6", "#e63946", "#2a9d5c", "#9a9a9a"), strict=True))
SHOWN = (1, 2, 3, 5, 10, 20, 30, 50, 75, 100, 125, 150, 175, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--out", type=Path, default=Path("attention-curves.png"))
    arguments, flags = parser.parse_known_args()
    flags += ["--steps", str(arguments.steps), *ALIKE]
    figure = Figure(figsize=(11, 3.6 * len(arguments.dropout)), dpi=80, layout="constrained")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = arguments.data or prepare_demo(folder / "demo")
        rows = figure.subplots(len(arguments.dropout), 2, squeeze=False)
        for dropout, (loss_axes, distance_axes) in zip(arguments.dropout, rows, strict=True):
            given = [*flags, "--data", str(data), "--set", f"model.dropout={dropout}"]
            runs = {name: run(folder / "run", name, given) for name in VARIANTS}
            losses = {name: [line["loss"] for line in each.lines("train")] for name, each in runs.items()}
            print(f"\nDropout {dropout}:\n")
            print(describe(losses))
            scores = {name: each.lines("eval")[-1]["stats"]["AP"] for name, each in runs.items()}
            print("\nAP after the last step: " + ", ".join(f"{name} {score:.4f}" for name, score in scores.items()))
            draw_losses(loss_axes, losses, f"training loss, dropout {dropout}")
            draw_distances(distance_axes, losses)
    save(figure, arguments.out)


def prepare_demo(folder: Path) -> Path:
    """Write the embedded demo set; return where it is."""
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "dedetr_cli", "prepare-data"], cwd=folder, stdout=sys.stderr, check=True)
    return folder / "data"


def run(folder: Path, name: str, flags: Sequence[str]) -> FinishedRun:
    threads, own = VARIANTS[name]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return train(folder.with_name(name), [*flags, *own])


def distances(losses: dict[str, list[float]], name: str) -> list[float]:
    """Return how far a run's losses are from those of plain, as shares of them."""
    return [abs(ours - plain) / plain for ours, plain in zip(losses[name], losses["plain"], strict=True)]


def describe(losses: dict[str, list[float]]) -> str:
    """Return a table of some steps; a distance is the largest since the row before."""
    others = [name for name in VARIANTS if name != "plain"]
    steps = [step for step in SHOWN if step <= len(losses["plain"])]
    rows = []
    for before, step in zip([0, *steps], steps, strict=False):
        largest = [f"{max(distances(losses, name)[before:step]):.1e}" for name in others]
        rows.append([step, *(f"{losses[name][step - 1]:.5f}" for name in ("plain", "fast")), *largest])
    headers = ["step", "plain", "fast", *(f"{name}: furthest from plain" for name in others)]
    return table(headers, rows)


def draw_losses(axes: Axes, losses: dict[str, list[float]], title: str) -> None:
    styles = {
        "plain, another seed": {"alpha": 0.6},
        "plain": {"linewidth": 3.5, "alpha": 0.45},
        "fast": {"linewidth": 1.0},
    }
    for name in styles:
        values = losses[name]
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[name], label=name, **styles[name])
    axes.set(title=title, xlabel="step", ylim=(0, None))
    axes.legend()


def draw_distances(axes: Axes, losses: dict[str, list[float]]) -> None:
    for name in ("plain, another seed", "plain, two threads", "fast"):
        # Equal losses have no logarithm; float32 tells numbers apart from 6e-8 on.
        values = [max(distance, 1e-8) for distance in distances(losses, name)]
        axes.plot(range(1, len(values) + 1), values, color=COLOURS[name], linewidth=1, label=name)
    axes.set(title="distance from plain, as a share of the loss", xlabel="step", yscale="log")
    axes.legend()


def save(figure: Figure, out: Path) -> None:
    """Write the picture with few colours, which takes a quarter of the space."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.frombytes("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    picture.quantize(24, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main()

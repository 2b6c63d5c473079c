from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from core.errors import MachineError
from core.visualization.curves import _epoch_means, _plot_ap, _spread, plot_training_curves


def _rows(num_epochs: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for epoch in range(1, num_epochs + 1):
        rows += [
            {"kind": "train", "step": 3 * epoch + k, "epoch": epoch, "loss": 9.0 - epoch + k / 9, "lr": 1e-4 / epoch}
            for k in range(3)
        ]
        rows.append({"kind": "eval", "epoch": epoch, "stats": {"AP": epoch / 10, "AP50": epoch / 8}})
    return rows


def _picture(rows: list[dict[str, Any]], out: Path) -> np.ndarray:
    plot_training_curves(rows, out)
    with Image.open(out) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_the_curves_are_on_the_picture(tmp_path: Path) -> None:
    empty, one, five = (_picture(_rows(n), tmp_path / "plots" / f"{n}.png") for n in (0, 1, 5))
    assert empty.shape == one.shape == five.shape
    edges = [0, int(0.39 * five.shape[1]), int(0.76 * five.shape[1]), five.shape[1]]

    def amount(picture: np.ndarray, color: tuple[int, int, int]) -> list[int]:
        close = np.abs(picture.astype(int) - np.array(color)).sum(-1) < 30
        return [int(close[:, left:right].sum()) for left, right in itertools.pairwise(edges)]

    blue, red, yellow, green = (29, 122, 214), (230, 57, 70), (255, 176, 0), (46, 160, 67)
    for place, color in ((0, blue), (1, red), (1, yellow), (2, green)):
        assert amount(empty, color) == [0, 0, 0]
        found = amount(five, color)
        assert found[place] > 300
        assert sum(found) == found[place]
        assert amount(one, color)[place] > 0  # a single epoch shows as a dot


def test_precision_is_a_share_as_in_the_tables() -> None:
    axes = Figure().subplots()
    _plot_ap(axes, [row for row in _rows(5) if row["kind"] == "eval"])
    ap, ap50 = axes.lines
    assert list(ap.get_ydata()) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert ap50.get_label() == "AP50 (best 0.625)"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "nothing"])
def test_missing_numbers_leave_gaps(tmp_path: Path, value: object) -> None:
    rows = _rows(3)
    rows[0]["loss"] = value
    rows[3]["stats"]["AP"] = value
    rows.append({"kind": "eval", "epoch": 3, "stats": {"AP": value, "AP50": value}})
    rows.append({"kind": "something else"})
    assert _picture(rows, tmp_path / "a.png").size


def test_rows_of_an_epoch_are_spread_over_it() -> None:
    assert _spread([1, 1, 2, 2, 2, 2]) == [0.5, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert _epoch_means([1, 1, 2], [2.0, 4.0, 7.0]) == {1: 3.0, 2: 7.0}


def test_matplotlib_keeps_no_figures(tmp_path: Path) -> None:
    plot_training_curves(_rows(2), tmp_path / "a.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_an_unwritable_place_is_said(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        plot_training_curves(_rows(1), blocker / "a.png")
    assert list(tmp_path.iterdir()) == [blocker]

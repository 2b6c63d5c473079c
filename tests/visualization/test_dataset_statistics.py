from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.annotations.checks.report import CheckReport
from core.annotations.checks.statistics import split_statistics
from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.errors import MachineError
from core.visualization.dataset_statistics import MAX_CLASSES, _classes, _objects, _sizes, draw_statistics

BLUE, YELLOW = (29, 122, 214), (255, 176, 0)


def _report(counts: dict[str, list[int]], names: list[str] | None = None, *, resized: bool = True) -> CheckReport:
    """A report on splits that hold so many boxes of each class, on one image, of 40 by 20 pixels."""
    statistics = {}
    for split, numbers in counts.items():
        categories = tuple(
            Category(index, (names or [f"class {k}" for k in range(len(numbers))])[index])
            for index in range(len(numbers))
        )
        labels = [label for label, num in enumerate(numbers) for _ in range(num)]
        annotations = tuple(
            Annotation(index, 1, label, (1.0, 1.0, 40.0, 20.0), 800.0, False) for index, label in enumerate(labels)
        )
        images = (ImageRecord(1, "a.png", 400, 300), ImageRecord(2, "b.png", 400, 300))
        sides = (800, 1333) if resized else (None, None)
        statistics[split] = split_statistics(AnnotationSet(images, annotations, categories), *sides)
    return CheckReport(Path("source"), "coco", (), 0, 0, statistics, (), (), ())


def _amount(path: Path, color: tuple[int, int, int]) -> int:
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return int((np.abs(pixels - np.array(color)).sum(-1) < 30).sum())


def test_every_split_has_its_colour_in_every_picture(tmp_path: Path) -> None:
    both = draw_statistics(_report({"train": [9, 4], "val": [3, 2]}), tmp_path / "both" / "deep")
    assert [path.name for path in both] == ["boxes-per-class.png", "box-sizes.png", "objects-per-image.png"]
    one = draw_statistics(_report({"train": [9, 4]}), tmp_path / "one")
    for first, second in zip(both, one, strict=True):
        assert _amount(first, BLUE) > 300
        assert _amount(first, YELLOW) > 300
        assert _amount(second, BLUE) > 300
        assert _amount(second, YELLOW) == 0


def test_bars_are_as_long_as_the_counts() -> None:
    axes = _classes(_report({"train": [2, 30, 0], "val": [0, 7, 0]}).statistics).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 1", "class 0"]  # the most on top
    assert [bar.get_width() for bar in axes.patches] == [30, 2, 7, 0]
    assert axes.get_title() == "boxes per class (1 more have none)"
    assert axes.get_xscale() == "linear"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_counts_that_differ_much_are_drawn_on_a_logarithmic_scale() -> None:
    axes = _classes(_report({"train": [1, 100]}).statistics).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] > 0


@pytest.mark.parametrize("num_classes", [1, 80, 300])
def test_few_and_many_classes(num_classes: int) -> None:
    figure = _classes(_report({"train": [1 + k % 7 for k in range(num_classes)]}).statistics)
    axes = figure.axes[0]
    shown = min(num_classes, MAX_CLASSES)
    assert len(axes.get_yticklabels()) == shown
    assert (f"({shown} of {num_classes} classes)" in axes.get_title()) == (num_classes > MAX_CLASSES)
    height_px = figure.get_figheight() * figure.dpi
    assert height_px < 2600
    assert height_px / shown > 20  # a line of text for each class


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["$x^{", "a\nb\x1b[31m", "_" * 200, "猫", "", "100 %", r"\frac{"]
    report = _report({"train": [3] * len(names), "$x^{$": [1] * len(names)}, names)
    assert len(draw_statistics(report, tmp_path)) == 3
    labels = [label.get_text() for label in _classes(report.statistics).axes[0].get_yticklabels()]
    assert labels[:2] == ["$x^{", "a b [31m"]
    assert len(labels[2]) == 28


def test_sizes_are_shares_with_coco_limits() -> None:
    figure = _sizes(_report({"train": [10]}).statistics)
    stored, resized, aspect = figure.axes
    assert {line.get_xdata()[0] for line in stored.lines} == {32, 96}
    assert [text.get_text() for text in stored.texts] == ["small", "medium", "large"]
    for axes, value in ((stored, 800**0.5), (resized, 800**0.5 * 800 / 300), (aspect, 2)):
        steps = axes.patches[0].get_data()
        assert steps.values.sum() == pytest.approx(1)
        full = int(np.argmax(steps.values))
        assert steps.edges[full] <= value < steps.edges[full + 1]
        assert axes.get_xlim()[0] <= value <= axes.get_xlim()[1]
    assert len(_sizes(_report({"train": [10]}, resized=False).statistics).axes) == 2


def test_objects_are_counted_by_image() -> None:
    axes = _objects(_report({"train": [4, 5]}).statistics).axes[0]
    steps = axes.patches[0].get_data()
    assert steps.edges[0] == -0.5
    assert list(np.flatnonzero(steps.values)) == [0, 9]  # the second image is empty
    assert axes.get_legend().get_texts()[0].get_text() == "train: mean 4.5, 95 % up to 9, most 9"
    # Bins of ten objects hold ten times as many images.
    wide = _objects(_report({"train": [599]}).statistics).axes[0].patches[0].get_data()
    assert (wide.values * np.diff(wide.edges)).sum() == pytest.approx(1)


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert draw_statistics(CheckReport(Path("x"), None, (), 1, 0, {}, (), (), ()), tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert len(draw_statistics(_report({"train": [0, 0], "val": []}), tmp_path)) == 3


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError):
        draw_statistics(_report({"train": [1]}), tmp_path / "file")


def test_no_torch_is_loaded() -> None:
    code = "import sys, core.visualization.dataset_statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The timed benchmarks run: what they measure, here; the scripts, in processes of their own, on something tiny."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from cases import Case, Machine, Results, Row
from speed import detr_rows, encoder_rows, line_of, way_rows
from tests.benchmarks.conftest import FOLDER
from workload import build, measure_memory, time_cases

SIZE = (64, 96)
TINY = Machine("resnet10", 2, "cpu", "float32", None)
FLAGS = ["--backbone", "resnet10", "--layers", "2", "--rounds", "1"]
ARGUMENTS = Namespace(sizes="64x96", queries="4,6", batch_size=None, ways="published,plain,fast")
ROWS = [*way_rows(ARGUMENTS), *encoder_rows(ARGUMENTS), *detr_rows(ARGUMENTS)]


needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is Linux's")


def run(script: str, *flags: str) -> str:
    command = [sys.executable, str(FOLDER / f"{script}.py"), *FLAGS, *flags]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def cells_of(printed: str) -> list[list[str]]:
    """Return the rows of the one table, without its head."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("name", ["de-conddetr 4 64x96 train", "6 64x96 padded train", "encoder", "detr 4 dela"])
def test_every_kind_of_row_is_measured(name):
    row = next(row for row in ROWS if name in row.name)
    seconds = time_cases(row.cases, TINY, rounds=2)
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(row.cases, 2)
    *_, last = line_of(row, seconds)
    assert float(last) > 0


def test_no_round_begins_after_the_time_is_up():
    case = Case("de-detr", "fast", "infer", 4, SIZE, 1)
    assert len(time_cases({"fast": case}, TINY, rounds=50, max_seconds=0)["fast"]) == 1


def test_training_steps_train():
    step = build(Case("dela-detr", "published", "train", 20, SIZE, 2), TINY)
    assert step().loss != step().loss


@needs_linux
def test_memory_grows_with_the_batch():
    few, many = (measure_memory(Case("de-detr", "fast", "infer", 4, (256, 320), size), TINY) for size in (1, 6))
    assert many["work"] > few["work"] > 0
    assert few["process"] > few["work"]


def test_measured_rows_are_kept(tmp_path):
    row, path = Row("one", {}), tmp_path / "rows.jsonl"
    Results(path, resume=False).measure(row, TINY, lambda: {"seconds": 1})
    assert json.loads(path.read_text())["seconds"] == 1
    assert Results(path, resume=True).measure(row, TINY, lambda: {"seconds": 2})["seconds"] == 1
    assert Results(path, resume=False).measure(row, TINY, lambda: {"seconds": 3})["seconds"] == 3


def test_speed(tmp_path):
    flags = ["--sizes", "64x96", "--queries", "4", "--only", "^de-detr 4 64x96 infer", "--results", tmp_path / "rows"]
    (cells,) = cells_of(run("speed", *map(str, flags)))
    assert cells[:4] == ["de-detr", "4", "64x96", "inference, B1"]
    published, plain, fast = (float(cell) for cell in cells[-3:])
    assert float(cells[4].split()[0]) == pytest.approx(published / fast, rel=0.02, abs=0.01)
    assert float(cells[5].split()[0]) == pytest.approx(plain / fast, rel=0.02, abs=0.01)


@needs_linux
def test_memory(tmp_path):
    flags = ["--sizes", "64x96", "--queries", "4", "--only", "^de-detr 4 64x96 infer", "--results", tmp_path / "rows"]
    (cells,) = cells_of(run("memory", *map(str, flags)))
    assert cells[:4] == ["de-detr", "4", "64x96", "inference, B1"]
    assert float(cells[4]) > 0


def test_growth(tmp_path):
    figure = tmp_path / "growth.png"
    flags = ["--sizes", "64x96", "--queries", "4", "--roi-sizes", "2", "--only", "infer"]
    rows = cells_of(run("growth", *flags, "--figure", str(figure), "--results", str(tmp_path / "rows")))
    assert [cells[:2] for cells in rows] == [["queries", "4"], ["image", "64x96"], ["RoI", "2x2"]]
    assert 1000 < figure.stat().st_size < 80_000


def test_profile():
    cells = cells_of(run("profile_step", "--queries", "4", "--size", "64x96"))
    rows = {part: columns for part, *columns in cells}
    for part in ("backbone", "encoder", "decoder layer 1", "cropping RoI tokens", "sparse attention but for cropping"):
        for column in rows[part]:
            forward, _, backward, _ = column.split()
            assert float(forward) > 0, part
            assert float(backward) > 0, part
    for part in ("matching", "clipping and AdamW"):
        assert all(float(column.split()[0]) > 0 for column in rows[part])

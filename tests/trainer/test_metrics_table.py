"""The evaluations as a table: one row each, means over the right steps, nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import MachineError
from core.evaluation.coco import STAT_NAMES
from core.trainer.metrics_table import write_metrics_csv
from core.trainer.records import Records

STATS = {name: (None if name == "APs" else index / 100) for index, name in enumerate(STAT_NAMES)}


def train(step: int, loss: float | None, lr: float = 1e-4) -> dict[str, Any]:
    return {"kind": "train", "epoch": 1, "step": step, "lr": lr, "loss": loss}


def evaluation(epoch: int, step: int, **stats: Any) -> dict[str, Any]:
    return {"kind": "eval", "epoch": epoch, "step": step, "stats": {**STATS, **stats}, "time_minutes": 1.5 * epoch}


def table_of(folder: Path, *records: dict[str, Any]) -> list[dict[str, str]]:
    source = folder / "metrics.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    write_metrics_csv(source, folder / "metrics.csv")
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_row_for_each_evaluation(tmp_path: Path) -> None:
    rows = table_of(
        tmp_path,
        train(10, 4.0),
        train(13, 1.0),
        evaluation(1, 13),
        train(23, 2.0, 1e-5),
        evaluation(2, 23, AP=0.5),
        train(33, 9.0),
    )
    assert [(row["epoch"], row["step"], row["minutes"]) for row in rows] == [("1", "13", "1.5"), ("2", "23", "3.0")]
    assert [float(row["lr"]) for row in rows] == [1e-4, 1e-5]
    # Ten steps at 4 and three at 1; then only what came since.
    assert [float(row["train_loss"]) for row in rows] == pytest.approx([43 / 13, 2.0])
    assert list(rows[0]) == ["epoch", "step", "minutes", "lr", "train_loss", *STAT_NAMES]
    assert rows[0]["APs"] == ""
    assert [float(rows[0][name]) for name in STAT_NAMES if name != "APs"] == [
        value for value in STATS.values() if value is not None
    ]
    assert float(rows[1]["AP"]) == 0.5


def test_what_is_not_there_is_an_empty_cell(tmp_path: Path) -> None:
    first, second = table_of(tmp_path, evaluation(1, 4), train(6, None), train(8, 3.0), evaluation(2, 8))
    assert (first["lr"], first["train_loss"]) == ("", "")
    assert second["train_loss"] == "3.0"


def test_without_an_evaluation_there_is_the_header(tmp_path: Path) -> None:
    assert table_of(tmp_path, train(10, 1.0)) == []
    assert (tmp_path / "metrics.csv").read_text().startswith("epoch,step,minutes,lr,train_loss,AP,")


def test_only_numbers_reach_the_table(tmp_path: Path) -> None:
    (row,) = table_of(tmp_path, train(10, 1.0), evaluation(1, 10, AP="=1+1", AP50=True, AP75=1e400, ARl=-1.0))
    assert (row["AP"], row["AP50"], row["AP75"], row["ARl"]) == ("", "", "", "-1.0")


def test_steps_that_a_resumed_run_makes_again_are_counted_once(tmp_path: Path) -> None:
    metrics, table = tmp_path / "metrics.jsonl", tmp_path / "metrics.csv"
    with Records(metrics) as records:
        records.write("train", train(10, 1.0))
        records.sync()
        offset = records.offset
        records.write("train", train(20, 100.0))
        records.write("eval", evaluation(1, 20))
    write_metrics_csv(metrics, table)
    assert len(table.read_text().splitlines()) == 2
    with Records(metrics, offset) as records:
        records.write("train", train(20, 3.0))
        records.write("eval", evaluation(1, 20))
    write_metrics_csv(metrics, table)
    (row,) = csv.DictReader(table.open(newline=""))
    assert row["train_loss"] == "2.0"


def test_records_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No such file") as caught:
        write_metrics_csv(tmp_path / "metrics.jsonl", tmp_path / "metrics.csv")
    assert caught.value.where == str(tmp_path / "metrics.jsonl")
    assert not (tmp_path / "metrics.csv").exists()

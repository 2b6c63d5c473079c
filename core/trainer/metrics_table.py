"""`metrics.csv`: the evaluations of a run as a table, for a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.evaluation.coco import STAT_NAMES
from core.files import write_atomic
from core.trainer.records import read_records

_COLUMNS = ("epoch", "step", "minutes", "lr", "train_loss", *STAT_NAMES)


def write_metrics_csv(metrics_jsonl: Path, out: Path) -> None:
    """Make the table anew from a run's records, so that a resumed run needs no care.

    It has a row for each evaluation: `epoch`, `step`, `minutes` since the run began, `lr` at the last step before it,
    `train_loss` (mean over the steps since the evaluation before), and COCO's twelve numbers. A cell is a finite
    number, or empty where there is none; nothing in it can be a formula.

    Args:
        metrics_jsonl: see `core.trainer.records`.
        out: the file.

    Raises:
        MachineError: a file cannot be read or written.
        CheckpointError: a line of the records is not JSON.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in _rows(read_records(metrics_jsonl)):
        writer.writerow([_cell(row.get(column)) for column in _COLUMNS])
    write_atomic(out, text.getvalue())


def _rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    since: list[Mapping[str, Any]] = []
    step = 0
    for record in records:
        if record.get("kind") == "train":
            since.append({**record, "num_steps": record["step"] - step})
            step = record["step"]
        elif record.get("kind") == "eval":
            row = {"epoch": record["epoch"], "step": record["step"], "minutes": record.get("time_minutes")}
            row |= {"lr": since[-1].get("lr") if since else None, "train_loss": _mean_loss(since)}
            rows.append(row | dict(record["stats"]))
            since = []
    return rows


def _mean_loss(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean over steps: a record's loss is that of as many as passed since the record before."""
    weighted = [(record["num_steps"], record["loss"]) for record in records if record.get("loss") is not None]
    num_steps = sum(count for count, _ in weighted)
    return sum(count * loss for count, loss in weighted) / num_steps if num_steps else None


def _cell(value: object) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return repr(value) if is_number else ""

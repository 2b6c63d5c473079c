from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from core.errors import CheckpointError
from core.trainer.records import Records, read_records


def test_lines_after_the_offset_are_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Records(path) as records:
        records.write("train", {"step": 1})
        records.sync()
        offset = records.offset
        assert offset == path.stat().st_size
        records.write("train", {"step": 2})
    with path.open("ab") as stream:
        stream.write(b'{"kind": "tra')
    assert [line["step"] for line in read_records(path)] == [1, 2]
    with Records(path, offset) as records:
        assert records.offset == offset
        records.write("train", {"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    with Records(tmp_path / "m") as records:
        records.write("train", {"a": math.nan, "b": {"c": [1.0, math.inf]}, "d": None, "e": 0.1})
    assert read_records(tmp_path / "m") == [{"kind": "train", "a": None, "b": {"c": [1.0, None]}, "d": None, "e": 0.1}]


def test_file_that_lost_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("{}\n")
    with pytest.raises(CheckpointError, match="3 bytes"):
        Records(tmp_path / "m", 10)
    assert (tmp_path / "m").read_text() == "{}\n"

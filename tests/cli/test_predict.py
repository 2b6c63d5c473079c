"""`dedetr predict` beyond pictures: label files, crops, chosen classes, names from standard input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import dedetr

LOW = ["--threshold", "0.05", "--no-pictures"]


def piped(content: bytes, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the command with something on its standard input."""
    return subprocess.run(
        [sys.executable, "-m", "dedetr_cli", "predict", *map(str, arguments)],
        input=content,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_names_come_from_standard_input_in_their_order(trained: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted((trained / "images").iterdir(), reverse=True)][:2]
    content = "".join(f"images/{name}\n" for name in names).encode()
    done = piped(content, "-", "--out", tmp_path / "vis", *LOW, cwd=trained)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "vis" / "predictions.json").read_text())
    assert list(dict.fromkeys(entry["file_name"] for entry in entries)) == [f"images/{name}" for name in names]


@pytest.mark.parametrize("content", [b"a\nno such [b].jpg\n", b"a\r\nno such [b].jpg\r\n", b"a\0no such [b].jpg\0"])
def test_names_are_separated_by_line_ends_or_zeros(tmp_path: Path, content: bytes) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a", format="PNG")
    done = piped(content, "-", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(b"error: no such [b].jpg: no image found"), done.stderr


def test_nothing_on_standard_input(trained: Path, tmp_path: Path) -> None:
    done = piped(b"\n", "-", "--out", tmp_path / "vis", cwd=trained)
    assert done.returncode == 3
    assert b"error: -: no file name came from standard input" in done.stderr


def test_json_names_what_could_not_be_read_beside_what_was_done(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "images", tmp_path / "mine")
    (tmp_path / "mine" / "broken.png").write_bytes(b"no image")
    flags = ["--json", "--yolo", "--crops", "--classes", "circle, square", "--batch-size", "4", *LOW]
    done = dedetr("predict", tmp_path / "mine", "--out", tmp_path / "vis", *flags, cwd=trained)
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert result["error"]["exit_code"] == 3
    assert result["num_images"] == len(result["labels"]) == len(list((trained / "images").iterdir()))
    assert len(result["unreadable"]) == 1
    assert "broken.png" in result["unreadable"][0]
    assert len(result["crops"]) == result["num_detections"]
    assert {Path(crop).parent.name for crop in result["crops"]} <= {"circle", "square"}

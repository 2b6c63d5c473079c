"""Every fault has a test that bears its name, and a row in the table of what a user sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = [f"F{number:02d}" for number in range(1, 83)]
# In the name of a test, or of a case of one.
_NAMES = re.compile(r"def test_((?:f\d\d_)+|\w*_f\d\d_)|id=\"(F\d\d)|\"(F\d\d)-")


def in_tests() -> set[str]:
    """Return the faults that names of tests name."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for match in _NAMES.finditer(path.read_text(encoding="utf-8")):
            found |= {name.upper() for name in re.findall(r"[fF]\d\d", match.group())}
    return found


def test_every_fault_has_a_test() -> None:
    assert sorted(set(FAULTS) - in_tests()) == []


def test_every_fault_has_a_row() -> None:
    table = ROOT / "docs" / "results" / "fault-messages.md"
    if not table.is_file():
        pytest.skip("the documentation is not here")
    rows = set(re.findall(r"^\| (F\d\d) \|", table.read_text(encoding="utf-8"), re.MULTILINE))
    assert sorted(set(FAULTS) - rows) == []

"""The demo set's own recipe learns: minutes on two cores, so not part of `make test`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import dedetr


@pytest.mark.slow
def test_the_recipe_of_the_demo_set_learns(demo: Path, tmp_path: Path) -> None:
    done = dedetr("train", "--out", tmp_path / "run", "--json", cwd=demo, timeout=1800, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["evaluation"]["stats"]["AP50"] > 0.4
    assert result["best_ap"] > 0.15

"""A run of seconds, shared by the tests of what Python users call."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.tiny import tiny_config, tiny_run


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint."""
    folder = tmp_path_factory.mktemp("detector")
    config = tiny_config(schedule={"epochs": 1, "lr_drop_epoch": None, "warmup_steps": 0}, data={"batch_size": 8})
    tiny_run(folder / "run", config, validate=False)
    return folder / "run"


@pytest.fixture(scope="package")
def files(run: Path) -> list[Path]:
    """Three images with objects, of different sizes."""
    return sorted(run.parent.glob("images-*/*.png"))[:3]

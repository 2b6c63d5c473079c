from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.tiny import tiny_run


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Runs are compared to the last bit, also with those of other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    tiny_run(folder)
    return folder

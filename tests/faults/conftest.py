"""The folder in which the commands of `tests/cli` were typed, and a way to type more of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dedetr_cli.__main__ import main
from tests.cli.conftest import demo, trained
from tests.faults.desk import desk
from tests.faults.running import finished, runs
from tests.faults.shell import Here

__all__ = ["demo", "desk", "finished", "runs", "trained"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """A command in this process, where PyTorch is loaded once: exit code, stdout, stderr."""

    def run(*arguments: str | Path, cwd: Path, **environment: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["dedetr", *map(str, arguments)])
            patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        captured = capsys.readouterr()
        return int(str(ended.value.code)), captured.out, captured.err

    return run

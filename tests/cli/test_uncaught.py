"""What is made of errors that are none of ours."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import DedetrError
from dedetr_cli.uncaught import explain


def explained(action: Callable[[], object]) -> DedetrError:
    try:
        action()
    except Exception as error:  # noqa: BLE001 (what is tested)
        return explain(error)
    raise AssertionError("nothing was raised")


def load(name: str) -> Callable[[], object]:
    return lambda: importlib.import_module(name)


def stop_in_an_extension() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as stop:
        raise ImportError("initialization failed") from stop


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, "full", "plot.png")


def divide() -> float:
    return 1 / 0


@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        (load("nowhere_to_be_found"), 5, ["No module named 'nowhere_to_be_found'", "pip check"]),
        (load("core.nowhere_to_be_found"), 1, ["this is a bug in dedetr"]),
        (stop_in_an_extension, 130, ["stopped by Ctrl-C"]),
        (fill_the_disk, 5, ["plot.png", "No space left", "free some space"]),
        (lambda: bytearray(1 << 62), 5, ["out of memory", "smaller"]),
        (divide, 1, ["this is a bug in dedetr: ZeroDivisionError", "test_uncaught.py:", "--debug"]),
    ],
)
def test_each_has_its_exit_code(action: Callable[[], object], code: int, words: list[str]) -> None:
    error = explained(action)
    assert error.exit_code == code
    for word in words:
        assert word in f"{error} {error.hint}"


def test_f74_code_that_fails_while_it_is_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "built_for_another.py").write_text("raise RuntimeError('operator another::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    error = explained(load("built_for_another"))
    assert error.exit_code == 5
    assert error.where == str(tmp_path / "built_for_another.py")
    assert "operator another::nms does not exist" in error.message

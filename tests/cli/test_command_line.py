"""The edge that all commands share: JSON on stdout whatever happens, the version, shell completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.annotations.records import Category
from core.evaluation.coco import ClassResult, EvaluationResult
from dedetr_cli import __version__
from dedetr_cli.tables import evaluation_tables
from tests.cli.conftest import dedetr, succeed


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        pytest.param(["prepare-data", "--out", "OUT"], ["splits", "classes"], id="prepare-data"),
        pytest.param(["subsample", "--rate", "0.1", "--out", "OUT"], ["path", "num_images"], id="subsample"),
    ],
)
def test_f81_every_result_is_one_json_document(
    demo: Path, tmp_path: Path, arguments: list[str], keys: list[str]
) -> None:
    """`succeed` checks the same of the other commands, in the tests of each."""
    placed = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    assert set(keys) <= json.loads(succeed(*placed, "--json", cwd=demo).stdout).keys()


@pytest.mark.parametrize(
    ("arguments", "code", "where"),
    [
        (["prepare-data", "nowhere"], 3, "nowhere"),
        (["prepare-data", "--val", "many"], 2, "--val"),
        (["subsample", "--rate", "0.5"], 3, None),
        (["subsample"], 2, "--rate"),
        (["train"], 3, None),
        (["train", "--lr", "-1"], 2, "--lr"),
        (["train", "--epochs", "ten"], 2, "--epochs"),
        (["eval"], 4, "runs/latest"),
        (["eval", "--josn"], 2, "--josn"),
        (["predict", "images"], 3, "images"),
        (["predict"], 2, "inputs"),
        (["visualize"], 4, "runs/latest"),
        (["visualize", "--threshold", "2"], 2, "--threshold"),
        (["trian"], 2, None),
    ],
)
def test_f81_every_error_is_one_json_document_too(
    tmp_path: Path, arguments: list[str], code: int, where: str | None
) -> None:
    done = dedetr(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() == {"schema_version", "command", "error"}
    assert (result["schema_version"], result["command"]) == (1, arguments[0])
    error = result["error"]
    assert error.keys() == {"message", "where", "hint", "exit_code", "code"}
    assert error["exit_code"] == code
    assert error["message"]
    assert where is None or where in error["where"]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert error["message"] in lines[0]


def test_without_json_an_error_leaves_stdout_empty(tmp_path: Path) -> None:
    assert dedetr("eval", cwd=tmp_path).stdout == ""


def test_version(tmp_path: Path) -> None:
    assert succeed("--version", cwd=tmp_path).stdout == f"dedetr {__version__}\n"


@pytest.mark.parametrize("command", ["prepare-data", "subsample", "train", "eval", "predict", "visualize", "doctor"])
def test_help_has_examples_of_the_command(command: str, tmp_path: Path) -> None:
    said = succeed(command, "--help", cwd=tmp_path).stdout
    assert f"dedetr {command}" in said.partition("Examples")[2]


COMPLETIONS = [
    ("tr", ["train"]),
    ("eval --device c", ["cpu", "cuda"]),
]


@pytest.mark.parametrize(("typed", "offered"), COMPLETIONS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_values_without_torch(
    tmp_path: Path, shell: str, typed: str, offered: list[str]
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    line = f"dedetr {typed}"
    done = dedetr(
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
        _DEDETR_COMPLETE=f"complete_{shell}",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split()) - 1),
        _TYPER_COMPLETE_ARGS=line,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
    )
    assert done.returncode == 0, done.stderr
    words = [line.split("\t")[0].split(":")[-1].strip("()\"' ") for line in done.stdout.splitlines()]
    if shell == "zsh":
        assert all(f'"{word}"' in done.stdout for word in offered)
        assert done.stdout.count('"') // 2 <= 2 * len(offered)
    else:
        assert words == offered


def test_completion_is_installed_for_bash(tmp_path: Path) -> None:
    script = dedetr(cwd=tmp_path, _DEDETR_COMPLETE="source_bash").stdout
    assert "complete -o default -F _dedetr_completion dedetr" in script
    sourced = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p dedetr"], capture_output=True, text=True, check=False, timeout=60
    )
    assert sourced.returncode == 0, sourced.stderr


def test_help_loads_neither_torch_nor_the_configuration(tmp_path: Path) -> None:
    code = (
        "import sys, dedetr_cli.app as a\n"
        "try: a.app(['--help'], prog_name='dedetr', standalone_mode=False)\n"
        "finally: print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.stderr.strip().endswith("[]"), done.stderr


@pytest.mark.parametrize(("num_classes", "num_with_boxes", "num_rows"), [(30, 30, 30), (80, 20, 20), (80, 80, 30)])
def test_tables_show_as_many_classes_as_can_be_read(num_classes: int, num_with_boxes: int, num_rows: int) -> None:
    classes = tuple(
        ClassResult(Category(number, f"c{number}"), *([number / 100] * 2 if number < num_with_boxes else [None] * 2), 1)
        for number in range(num_classes)
    )
    _, by_class = evaluation_tables(EvaluationResult({}, classes, 1, 1), "title")
    assert by_class.row_count == num_rows
    names = list(by_class.columns[0].cells)
    if num_with_boxes == 80:
        assert [str(name) for name in (names[0], names[14], names[15], names[29])] == ["c79", "c65", "c14", "c0"]
        assert "of 80 that have boxes" in str(by_class.title)

"""What bash offers behind a flag whose values depend on the data set; nothing where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import dedetr, succeed


def offered(line: str, folder: Path) -> list[str]:
    """Return what Tab shows behind a line; PyTorch is not there to be loaded."""
    nowhere = folder / "no torch"
    nowhere.mkdir(exist_ok=True)
    (nowhere / "torch.py").write_text("raise SystemExit('torch was imported')")
    words = line.split(" ")
    done = dedetr(
        cwd=folder,
        PYTHONPATH=str(nowhere),
        _DEDETR_COMPLETE="complete_bash",
        COMP_WORDS="dedetr " + line,
        COMP_CWORD=str(len(words)),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return [word for word in done.stdout.split("\n") if word]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    succeed("prepare-data", cwd=folder)
    succeed("subsample", "--rate", "0.05", cwd=folder)
    succeed("subsample", "--rate", "0.5", "--seed", "3", cwd=folder)
    return folder


def test_classes_of_the_data_set(prepared: Path) -> None:
    names = offered("predict a.jpg --classes ", prepared)
    assert len(names) > 1
    first, second = names[:2]
    assert first in offered(f"predict a.jpg --classes {first[:2]}", prepared)
    assert f"{first},{second}" in offered(f"predict a.jpg --classes {first},", prepared)


def test_subset_files_of_the_data_set_that_the_line_names(prepared: Path) -> None:
    files = ["train-50pct-seed3.json", "train-5pct-seed0.json"]
    assert offered("train --subset train-", prepared) == files
    assert offered("train --data data --subset train-5p", prepared) == files[1:]
    assert offered("train --data nowhere --subset ", prepared) == []


def test_formats_and_splits(tmp_path: Path) -> None:
    assert offered("prepare-data --format vo", tmp_path) == ["voc"]
    assert offered("eval --split v", tmp_path) == ["val"]


@pytest.mark.parametrize("content", [None, "name: [", ""], ids=["absent", "cut-off", "empty"])
def test_without_a_data_set_nothing_is_offered_and_nothing_said(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "dataset.yaml").write_text(content)
    for line in ("predict a.jpg --classes ", "train --subset "):
        assert offered(line, tmp_path) == []

"""`dedetr train --replay FILE`, as a user types it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from core.processes import ALONE
from tests.cli.conftest import TINY
from tests.cli.test_documented_commands import typed
from tests.trainer.test_divergence import diverge


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step that something outside the model has spoilt, so that all is well when it is made again."""
    folder = tmp_path_factory.mktemp("healthy")
    diverge(folder, ALONE, "gradient")
    return folder / "diverged" / "step-00000002.pt"


def test_a_run_that_diverges_is_looked_into_from_one_file(
    demo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, elsewhere = tmp_path / "a run", tmp_path / "elsewhere"
    code = typed(shlex.join(["dedetr", "train", *TINY, "--batch-size", "4", "--lr", "1e6", "--out", str(run)]), demo)
    said = capfd.readouterr().err
    assert code == 6, said
    found = re.search(r"^hint: `(dedetr train --replay .*)` makes it again", said, re.MULTILINE)
    assert found, said
    # Neither the data set nor the run is there any more.
    elsewhere.mkdir()
    (file,) = (run / "diverged").iterdir()
    shutil.copy(file, elsewhere / "step.pt")
    shutil.rmtree(run)
    assert typed("dedetr train --replay step.pt", elsewhere) == 6
    out, err = capfd.readouterr()
    assert "step 2, in epoch 1, made again" in out
    assert "first output not finite" in out
    assert re.search(r"largest weight .* 1e\+06, in ", out)
    assert "each image alone" in out
    assert re.search(r"^error: .* again, at step 2 \(image ids ", err)

    assert typed("dedetr train --replay step.pt --json --set model.attention=plain", elsewhere) == 6
    document = json.loads(capfd.readouterr().out)
    assert document["command"] == "train"
    assert document["error"]["exit_code"] == 6
    assert document["replay"]["diverges"] is True
    (part,) = document["replay"]["parts"]
    assert part["sighting"]["output"]
    assert [image["file_name"][:6] for image in part["images"]] == ["train/"] * 4
    assert [path.name for path in elsewhere.iterdir()] == ["step.pt"]
    assert typed(found[1], demo) == 4


def test_all_numbers_finite_is_success(healthy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert typed(f"dedetr train --replay {healthy}", tmp_path) == 0
    out, err = capfd.readouterr()
    assert re.search(r"again .* no ", out)
    assert "the run's, to the last bit" in out
    assert "all numbers were finite this time" in err
    assert typed(f"dedetr train --replay {healthy} --json --device cpu --precision bfloat16", tmp_path) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["replay"]["diverges"] is False
    assert document["replay"]["precision"] == "bfloat16"
    assert "error" not in document
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("--resume", 2, "--resume: has no meaning with --replay"),
        ("--weights model.pt", 2, "--weights"),
        ("--out runs/x", 2, "--out"),
        ("--nproc 2", 2, "--nproc"),
        ("--dry-run", 2, "--dry-run"),
        ("--data data", 2, "--data: 'data.root' is fixed by the step"),
        ("--lr 1", 2, "--lr: 'optimizer.lr' is fixed by the step"),
        ("--no-cache", 2, "--no-cache"),
        ("--tensorboard --wandb", 2, "--tensorboard"),
        ("--set model.dropout=0", 2, "--set model.dropout: 'model.dropout' is fixed by the step"),
        ("--set run.precison=float32", 2, "did you mean 'precision'?"),
        ("--precision float64", 2, "--precision"),
        ("--device gpu", 2, "unknown device"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    flags: str, code: int, words: str, healthy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert typed(f"dedetr train --replay {healthy} {flags}", tmp_path) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err.replace("Invalid value for ", "")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("missing.pt", "text.pt", "folder"):
        (tmp_path / "text.pt").write_text("no weights")
        (tmp_path / "folder").mkdir(exist_ok=True)
        assert typed(f"dedetr train --replay {name}", tmp_path) == 4
        error, hint = capfd.readouterr().err.splitlines()
        assert name in error
        assert "diverged/" in hint

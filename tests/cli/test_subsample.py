"""`dedetr subsample` as a user types it; what it chooses is tested in tests/annotations."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from dedetr_cli.app import main
from tests.cli.conftest import TINY, succeed


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    """A folder with the demo set alone, that a test may write to."""
    shutil.copytree(demo / "data", tmp_path / "data", ignore=shutil.ignore_patterns("*-seed*", "images"))
    shutil.copytree(demo / "data" / "images", tmp_path / "data" / "images", copy_function=shutil.copy)
    return tmp_path


def typed(*words: str, cwd: Path) -> int:
    """Return the exit code of a command, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["dedetr", *words])
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        with pytest.raises(SystemExit) as ended:
            main()
    return int(str(ended.value.code))


def test_shots_are_trained_on_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = succeed("subsample", "--shots", "2", cwd=folder)
    assert "2 boxes or more of every class, seed 0" in done.stdout
    assert done.stdout.rstrip().endswith("train-2shot-seed0.json")
    assert "dedetr train --subset 2shot" in done.stderr
    assert typed("train", "--subset", "2shot", "--dry-run", *TINY, cwd=folder) == 0
    assert "2 boxes or more of every class, seed 0: " in capsys.readouterr().err


def test_json_names_what_was_chosen_and_a_dry_run_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    flags = ["subsample", "--num-images", "9", "--stratify", "--seed", "3", "--json"]
    dry = json.loads(succeed(*flags, "--dry-run", cwd=folder).stdout)
    assert sorted(folder.rglob("*")) == before
    done = json.loads(succeed(*flags, cwd=folder).stdout)
    assert (dry.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert dry == done
    assert (done["num_images"], done["stratified"], done["seed"], done["missing_classes"]) == (9, True, 3, [])
    assert Path(folder / done["path"]).name == "train-9images-stratified-seed3.json"
    assert all(0 < count <= done["parent_class_counts"][name] for name, count in done["class_counts"].items())


def test_folds_and_a_manifest_sent_elsewhere(folder: Path) -> None:
    folds = json.loads(succeed("subsample", "--folds", "3", "--out", "folds", "--json", cwd=folder).stdout)
    assert len(list((folder / "folds").iterdir())) == 12
    held_out = [fold["held_out"] for fold in folds["folds"]]
    assert sum(part["num_images"] for part in held_out) == folds["num_parent_images"]
    printed = succeed("subsample", "--folds", "3", cwd=folder)
    assert "train-fold1of3-heldout-seed0.json" in printed.stdout
    assert "dedetr train --subset fold1of3" in printed.stderr
    (folder / "sent.json").write_bytes(Path(folder / held_out[1]["manifest"]).read_bytes())
    rebuilt = succeed("subsample", "--from-manifest", "sent.json", "--out", "again.json", cwd=folder)
    assert "fold 2 of 3" in rebuilt.stdout
    assert (folder / "again.json").read_bytes() == Path(folder / held_out[1]["path"]).read_bytes()


@pytest.mark.parametrize(
    ("flags", "code", "where"),
    [
        ([], 2, "--rate"),
        (["--rate", "0.5", "--shots", "3"], 2, "--shots"),
        (["--folds", "3", "--rate", "0.5"], 2, "--rate"),
        (["--folds", "3", "--stratify"], 2, "--stratify"),
        (["--folds", "1"], 2, "--folds"),
        (["--num-images", "0"], 2, "--num-images"),
        (["--num-images", "999999"], 2, "--num-images"),
        (["--shots", "many"], 2, "--shots"),
        (["--seed", "-1", "--rate", "0.5"], 2, "--seed"),
        (["--from-manifest", "sent.json", "--seed", "1"], 2, "--seed"),
        (["--from-manifest", "sent.json"], 3, "sent.json"),
        (["--folds", "999999"], 3, "--folds"),
    ],
    ids=str,
)
def test_f76_flags_that_cannot_be_used(
    demo: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, where: str
) -> None:
    assert typed("subsample", *flags, cwd=demo) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert where in said.err.splitlines()[0]


def test_help_has_examples(tmp_path: Path) -> None:
    text = succeed("subsample", "--help", cwd=tmp_path).stdout
    for example in ("--rate 0.05", "--shots 10", "--folds 5", "--from-manifest"):
        assert example in text

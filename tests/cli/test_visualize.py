"""`dedetr visualize`, mode by mode, on a run of seconds."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from core import api
from core.errors import UsageError
from tests.cli.conftest import succeed


def test_every_mode_leaves_its_pictures(trained: Path) -> None:
    done = succeed(
        "visualize", "--mode", "matches,curves", "--mode", "all", "--num-images", "2", "--num-queries-shown", "2",
        "--out", "plots-all", "--json", cwd=trained,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    names = {mode: [Path(path).name for path in paths] for mode, paths in answer["by_mode"].items()}
    assert names == {
        "compare": ["0241.png", "0271.png"],
        "curves": ["curves.png"],
        "matches": ["0241-matches.png", "0271-matches.png"],
        "attention": ["0241-attention.png", "0271-attention.png"],
    }
    assert answer["pictures"] == [path for paths in answer["by_mode"].values() for path in paths]
    assert sorted(path.name for path in (trained / "plots-all").iterdir()) == sorted(itertools.chain(*names.values()))
    for path in answer["pictures"]:
        with Image.open(trained / path) as picture:
            picture.load()
            assert min(picture.size) > 300


def test_a_weight_file_without_a_run_has_no_curves(trained: Path, tmp_path: Path) -> None:
    weights = Path(shutil.copy(trained / "runs" / "tiny" / "checkpoints" / "best" / "model.pt", tmp_path))
    notes: list[str] = []
    outcome = api.visualize(weights, out=tmp_path / "out", num_images=1, on_note=notes.append)
    assert list(outcome.by_mode) == ["compare"]
    assert sum("no run: no curves" in note for note in notes) == 1
    with pytest.raises(UsageError, match="no run: no curves"):
        api.visualize(weights, modes=["curves"], out=tmp_path / "curves-only")
    assert not (tmp_path / "curves-only").exists()


def test_curves_need_no_data(trained: Path, tmp_path: Path) -> None:
    run = trained / "runs" / "tiny"
    outcome = api.visualize(run, modes=["curves"], data=tmp_path / "nowhere", out=tmp_path)
    assert outcome.pictures == (tmp_path / "curves.png",)


@pytest.mark.parametrize("modes", [["match"], []], ids=str)
def test_an_unknown_mode_is_refused(trained: Path, modes: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        api.visualize(trained / "runs" / "tiny", modes=modes)
    assert raised.value.where == "--mode"
    assert "matches" in (raised.value.hint or "")


@pytest.mark.parametrize("mode", ["compare", "curves", "matches", "attention"])
def test_the_users_images_are_never_replaced(trained: Path, tmp_path: Path, mode: str) -> None:
    """An image has the name that a picture of another one would have in its folder."""
    data = Path(shutil.copytree(trained / "data", tmp_path / "data"))
    (tmp_path / "images").symlink_to(data / "images")
    file = data / "annotations" / "val.json"
    annotations = json.loads(file.read_text())
    name = {"compare": "0241.png", "curves": "curves.png"}.get(mode, f"0241-{mode}.png")
    last = data / "images" / annotations["images"][-1]["file_name"]
    if mode != "compare":  # which image has that name without our doing
        annotations["images"][-1]["file_name"] = f"val/{name}"
        file.write_text(json.dumps(annotations))
        last.rename(last.with_name(name))
    before = (last.parent / name).read_bytes()
    with pytest.raises(UsageError, match="replace the images themselves"):
        api.visualize(
            trained / "runs" / "tiny",
            modes=["matches", "curves"] if mode == "curves" else [mode],
            data=data,
            num_images=1,
            out=tmp_path / "images" / "val",
        )
    assert (last.parent / name).read_bytes() == before

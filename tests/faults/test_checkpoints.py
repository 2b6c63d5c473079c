"""F32 and F44 to F55: checkpoints that are damaged, foreign, somebody else's, or cannot be written.

Some of these faults are tested beside what they are about, too: `pytest -k "f44 or f45 or ..."` finds all of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.annotations.conftest import all_bytes
from tests.faults.running import GO_ON, NEWEST, Runs, replace, under_way
from tests.faults.shell import posix, require_one_error
from tests.faults.test_untrusted import Touch


def cut_off(content: bytes) -> bytes:
    return content[:-20]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def damage(path: Path, change: Callable[[bytes], bytes] = flip_a_bit) -> None:
    content = path.read_bytes()
    replace(path, lambda: path.write_bytes(change(content)))


@pytest.mark.parametrize(("name", "change"), [("model.pt", cut_off), ("training.pt", flip_a_bit)])
def test_f44_the_newest_is_damaged(runs: Runs, name: str, change: Callable[[bytes], bytes]) -> None:
    damage(runs.folder / NEWEST / name, change)
    said = runs.go_on(2)
    (warning,) = (line for line in said.splitlines() if line.startswith("warning: "))
    assert f"checkpoint {NEWEST} is damaged ({name} is not what was written): going on from step 2" in warning
    assert (runs.folder / f"{NEWEST}.damaged").is_dir()


def test_f45_none_is_whole(runs: Runs) -> None:
    for folder in (runs.folder / "run/checkpoints").glob("step-*"):
        damage(folder / "model.pt")
    runs.refuse(4, "step-00000004 is damaged", "step-00000002 is damaged", "start again with --overwrite")
    shutil.rmtree(runs.folder / "run/checkpoints")
    runs.refuse(4, "there is no checkpoint to resume from", "start again with --overwrite")


def test_f46_leftovers_are_ignored_and_removed(runs: Runs) -> None:
    checkpoints = runs.folder / "run/checkpoints"
    shutil.copytree(runs.folder / NEWEST, checkpoints / "step-00000009.tmp")
    (checkpoints / ".last.1.tmp").symlink_to("step-00000009.tmp")
    (checkpoints / "step-00000011.tmp").mkdir()
    (checkpoints / "step-00000011.tmp" / "model.pt").write_bytes(b"half")
    assert runs.type("eval", "--checkpoint", "run", "--device", "cpu")[0] == 0
    assert "warning" not in runs.go_on(4)
    assert not list(checkpoints.glob("*.tmp"))


def test_f47_steps_are_numbers(runs: Runs) -> None:
    checkpoints = runs.folder / "run/checkpoints"
    (checkpoints / "step-00000002").rename(checkpoints / "step-99999998")
    (checkpoints / "step-00000004").rename(checkpoints / "step-100000000")
    assert "warning" not in runs.go_on(4)


# F48: a save that is refused (a full disk is F70, tests/faults/test_environment.py)

_WITHOUT_POWER = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
"""The words that make a command of the superuser's one that permissions hold for."""


@posix
def test_f48_permissions_that_are_taken_away(runs: Runs) -> None:
    """SIGTERM asks for a checkpoint: that there is none is not to be passed over with 143."""
    prefix = () if os.geteuid() != 0 else _WITHOUT_POWER
    if prefix and (shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], check=False).returncode):
        pytest.skip("the superuser may write anywhere here")
    checkpoints = runs.folder / "new" / "checkpoints"
    with under_way(runs.folder / "new", cwd=runs.folder, prefix=prefix) as process:
        checkpoints.mkdir(exist_ok=True)
        checkpoints.chmod(0o500)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        checkpoints.chmod(0o700)
    require_one_error(process.returncode, said, 5, "cannot save the checkpoint: Permission denied", "check the folder")
    assert list(checkpoints.iterdir()) == []


@contextmanager
def immutable(folder: Path) -> Iterator[None]:
    """Let nobody write into a folder, the superuser included."""
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", folder], capture_output=True).returncode:
        pytest.skip("no folder can be made immutable here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


def test_f48_a_folder_that_is_immutable(runs: Runs) -> None:
    checkpoints = runs.folder / "run/checkpoints"
    before = all_bytes(checkpoints)
    with immutable(checkpoints):
        code, _, said = runs.type(*GO_ON)
    require_one_error(code, said, 5, str(checkpoints.relative_to(runs.folder)), "Operation not permitted", "hint: ")
    assert all_bytes(checkpoints) == before
    runs.go_on(4)


# F49: resumed as something else


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "detr"], ["model.name was dela-detr, now detr"]),
        (["--num-queries", "31"], ["model.num_queries was 30, now 31"]),
        (["--set", "backbone.name=resnet18"], ["backbone.name was resnet10, now resnet18"]),
    ],
)
def test_f49_another_model(runs: Runs, flags: list[str], words: list[str]) -> None:
    runs.refuse(4, "the checkpoint holds another model", *words, flags=[*GO_ON, *flags])


def test_f49_other_classes(runs: Runs) -> None:
    for split in ("train", "val"):
        path = runs.folder / f"coco/annotations/instances_{split}2017.json"
        text = path.read_text().replace('"cat"', '"lynx"')
        replace(path, lambda path=path, text=text: path.write_text(text))  # type: ignore[misc]
    # The run remembers where its data was: this is a copy of it.
    flags = [*GO_ON, "--data", "coco"]
    runs.refuse(4, "classes missing here: 3 cat; new here: 3 lynx", flags=flags)


def test_f49_other_settings_need_override(runs: Runs) -> None:
    flags = [*GO_ON, "--lr", "1e-5"]
    without = [flag for flag in flags if flag != "--override"]
    runs.refuse(2, "optimizer.lr was 0.001, now 1e-05", "schedule.epochs was 2, now 3", "--override", flags=without)
    runs.go_on(4, "--lr", "1e-5")


# F52, F54; F50 and F51: tests/cli/test_fine_tuning.py; F53: test_processes.py


def test_f52_a_run_folder_that_is_not_empty_is_refused_before_any_work(runs: Runs) -> None:
    nothing = ["--preset", "none", "--data", "nowhere"]
    runs.refuse(2, "run: the run folder is not empty", "--resume", flags=["train", *nothing, "--out", "run"])
    shutil.rmtree(runs.folder / "run")
    (runs.folder / "run").mkdir()
    (runs.folder / "run" / "thesis.txt").write_text("mine")
    runs.refuse(2, "not empty (thesis.txt)", flags=["train", *nothing, "--out", "run"])


@pytest.mark.parametrize("command", [GO_ON, ["eval", "--checkpoint", NEWEST]], ids=["resume", "eval"])
def test_f54_a_newer_format(runs: Runs, command: list[str]) -> None:
    runs.change("model.pt", lambda content: content | {"format_version": 99, "made_by": "7.8.9"})
    runs.refuse(4, "made by dedetr 7.8.9 in format 99; this is dedetr ", "reads format 1", flags=command)


# F32: a checkpoint from somebody who means no good (`--weights`, `--checkpoint`: test_untrusted.py)


@pytest.mark.parametrize("name", ["model.pt", "training.pt"])
def test_f32_a_pickle_in_a_checkpoint_is_not_run(runs: Runs, name: str) -> None:
    canary = runs.folder / "canary"
    path = runs.folder / NEWEST / name
    content = torch.load(path, weights_only=True)
    replace(path, lambda: torch.save(content | {"seconds": Touch(canary)}, path))
    runs.sign()
    runs.refuse(4, f"{NEWEST}/{name}", "refused")
    code, _, said = runs.type(*GO_ON, "--trust-checkpoint")
    assert (code, canary.exists()) == (4, False), said
    if name == "model.pt":
        runs.refuse(
            4,
            "refused",
            "--trust-checkpoint",
            flags=["predict", "coco/val2017", "--checkpoint", "run/checkpoints/last"],
        )
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()  # it would have been made

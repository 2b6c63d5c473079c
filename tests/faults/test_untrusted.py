"""F31 to F39: names, archives, pickles and addresses from people who mean no good, or do not know better.

Checkpoints of a run that is resumed are in tests/trainer/test_checkpoint.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from core.annotations.prepared import open_dataset
from tests.cli.conftest import TINY
from tests.faults.desk import Desk

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "C:\\x.png", "x\0.png"])
def test_f31_file_name_that_leads_out(desk: Desk, name: str) -> None:
    desk.put("images", 0, "file_name", name)
    error = desk.refuse_source("F31")
    assert "escapes image root" in error.message
    assert str(error.where).endswith("images[0].file_name")


def test_f31_link_that_leads_out(desk: Desk) -> None:
    desk.image().rename(desk.folder / "outside.png")
    desk.image().symlink_to(desk.folder / "outside.png")
    assert "by a link" in desk.refuse_source("F31").message


def test_f34_yaml_that_would_run_code(desk: Desk) -> None:
    for name in ("evil.yaml", "dataset.yaml"):
        (desk.folder / name).write_text("run: !!python/object/apply:os.mkdir [canary]\n")
    error = desk.refuse("train", "--config", "evil.yaml", "--dry-run", exit_code=2)
    assert error.where == "evil.yaml:1"
    assert desk.run("subsample", "--rate", "0.5", "--data", ".")[0] == 3
    assert not (desk.folder / "canary").exists()


def archives(folder: Path, names: dict[str, bytes]) -> Path:
    """Cityscapes as it is downloaded."""
    folder.mkdir()
    for archive in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
        with zipfile.ZipFile(folder / archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in names.items():
                opened.writestr(name, content)
    return folder


@pytest.mark.parametrize(
    ("names", "code"),
    [
        pytest.param({"../evil.txt": b"evil"}, "F37", id="leads-out"),
        pytest.param({"leftImg8bit/train/a/b_leftImg8bit.png": bytes(80 << 20)}, "F35", id="ratio"),
    ],
)
def test_f37_archive_that_is_not_safe(desk: Desk, names: dict[str, bytes], code: str) -> None:
    archives(desk.folder / "cityscapes", names)
    assert "cityscapes/" in str(desk.refuse("prepare-data", "cityscapes", code=code).where)


def test_f38_names_are_shown_and_written_as_they_are(desk: Desk) -> None:
    name = "=1+1 [red]x[/red] \x1b[31m\nnew"
    for split in ("train", "val"):
        desk.edit(lambda content: content["categories"][0].update(name=name), split)
    said = desk.accept("prepare-data", "coco")
    assert "\x1b" not in said
    assert "=1+1 [red]x[/red]  [31m new" in said
    assert open_dataset(desk.folder / "data").classes[0].name == name
    desk.edit(lambda content: content["images"][0].update(file_name=f"{name}.png"))
    code, _, err = desk.run("prepare-data", "coco")
    assert code == 3
    assert "\x1b" not in err
    assert "=1+1 [red]x[/red]" in err
    assert len([line for line in err.splitlines() if not line.startswith(("error: ", "hint: "))]) == 0


class Touch:
    """Pickled, it makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "command",
    [["eval", "--checkpoint"], ["predict", "images", "--checkpoint"], ["train", "--dry-run", "--weights"]],
    ids=["eval", "predict", "train"],
)
def test_f32_pickle_that_would_run_code(desk: Desk, command: list[str]) -> None:
    import torch

    (desk.folder / "images").mkdir()
    shutil.copyfile(desk.image(), desk.folder / "images" / "001.png")
    canary = desk.folder / "canary"
    torch.save({"model": {"x": torch.zeros(1)}, "args": Touch(canary)}, desk.folder / "evil.pth")
    words = [*command, "evil.pth", *(["--data", "coco"] if command[0] != "predict" else [])]
    error = desk.refuse(*words, exit_code=4)
    assert "mkdir" in error.message
    assert "--trust-checkpoint" in str(error.hint)
    assert not canary.exists()
    assert desk.run(*words, "--trust-checkpoint")[0] == 4  # its one tensor is no model
    assert canary.exists()


def test_f33_checkpoint_of_the_reference_needs_no_trust(desk: Desk) -> None:
    import torch

    from tests.golden_files import Golden
    from tests.models.test_weights import synthetic_checkpoint

    torch.save(synthetic_checkpoint(Golden("dela-detr")), desk.folder / "upstream.pth")
    size = ["--short-side", "64", "--batch-size", "2", "--device", "cpu"]
    assert "dela-detr" in desk.accept("train", "--data", "coco", "--weights", "upstream.pth", "--dry-run", *size)


OFFLINE = """
import os, socket, sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        is_local = arguments[0].family == socket.AF_UNIX
    else:
        is_local = event not in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
    if not is_local:
        with open(os.environ["SOCKETS_SEEN"], "a") as stream:
            stream.write(f"{event} {arguments}\\n")
        raise OSError(f"no network: {event}")

sys.addaudithook(forbid)
"""


COMMANDS = [
    ["prepare-data", "coco", "--copy-images"],
    ["prepare-data", "data", "--check"],
    ["subsample", "--rate", "0.5"],
    ["train", "--dry-run", "--preset", "demo", *TINY, "--batch-size", "2"],
    ["doctor"],
]
TYPE_ALL = (
    "import json, sys; from dedetr_cli.app import app; [app(c, standalone_mode=False) for c in json.loads(sys.argv[1])]"
)
FETCH = """
from pathlib import Path
from core.annotations import download
from core.annotations.coco_download import fetch_coco
download.PAUSES_S = ()
fetch_coco(Path("fresh"), "http://127.0.0.1:9")
"""


def test_f39_no_socket_without_download(desk: Desk) -> None:
    (desk.folder / "offline").mkdir()
    (desk.folder / "offline" / "sitecustomize.py").write_text(OFFLINE)
    seen = desk.folder / "seen"
    environment = {
        "PYTHONPATH": f"{desk.folder / 'offline'}{os.pathsep}{ROOT}", "SOCKETS_SEEN": str(seen),
        "OMP_NUM_THREADS": "1", "DEDETR_RUN__DEVICE": "cpu",
    }  # fmt: skip

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=desk.folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = python("-c", TYPE_ALL, json.dumps(COMMANDS))
    assert done.returncode == 0, done.stderr
    assert not seen.exists(), seen.read_text()
    done = python("-c", FETCH)  # as --download does: the guard sees it
    assert "MachineError" in done.stderr
    assert "no network: socket." in done.stderr
    assert "127.0.0.1" in seen.read_text()

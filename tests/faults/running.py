"""Short training runs: one that is under way, and one that is over and may be spoilt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from core.files import sha256_of
from tests.annotations.conftest import all_bytes, make_coco_layout
from tests.cli.conftest import TINY
from tests.faults.desk import typed
from tests.faults.process_tree import family, send
from tests.faults.shell import Here, require_one_error, start

SHORT = ["--data", "coco", "--preset", "demo", *TINY, "--batch-size", "2", "--set", "run.log_every=1"]
"""Flags of a training run of two steps an epoch, on the source that `make_coco_layout` writes into `coco`."""


@contextmanager
def under_way(
    run: Path, *flags: str | Path, cwd: Path, prefix: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Start a long training run in `run`, wait for its first step, and end with all of its processes gone."""
    long = ["--epochs", "2000", "--set", "run.eval_every=2000", "--set", "run.checkpoint_every=2000"]
    with start(
        "train", *SHORT, *long, "--out", run, *flags, cwd=cwd, prefix=prefix, stdout=subprocess.DEVNULL
    ) as process:
        try:
            said = []
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line)
                if line.startswith("epoch 1 step"):
                    break
            else:
                raise AssertionError("".join(said))
            yield process
        finally:
            send(signal.SIGKILL, family(process.pid))


def children(process: int) -> list[int]:
    """Return the ids of a process's children."""
    found = []
    with suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


GO_ON = ["train", "--resume", "--override", "--epochs", "3", "--device", "cpu", "--out", "run"]
"""The words that train the finished run for another epoch."""
NEWEST = "run/checkpoints/step-00000004"
"""Its newest checkpoint; there is another one of step 2."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source in `coco`, and a run of two epochs in `run` with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("finished")
    make_coco_layout(folder / "coco")
    for number, flags in enumerate((SHORT, ["--resume", "--override", "--epochs", "2"])):
        typed(folder, "train", *flags, "--out", "run")
        assert len(list((folder / "run" / "checkpoints").glob("step-*"))) == number + 1
    return folder


class Runs:
    """A copy of the finished run to be spoilt, and commands typed beside it."""

    def __init__(self, folder: Path, here: Here) -> None:
        self.folder = folder
        self.here = here

    def type(self, *words: object) -> tuple[int, str, str]:
        """Type a command; return its exit code, stdout and stderr."""
        return self.here(*map(str, words), cwd=self.folder, OMP_NUM_THREADS="1")

    def go_on(self, from_step: int, *flags: str) -> str:
        """Train one epoch more; require that it began after a step, and return what was said."""
        code, _, said = self.type(*GO_ON, *flags)
        assert code == 0, said
        assert f"6 steps, from step {from_step} -> run" in said
        return said

    def refuse(self, exit_code: int, *words: str, flags: list[str] | None = None) -> None:
        """Require that the run does not go on, and that nothing has changed."""
        before = all_bytes(self.folder)
        code, printed, said = self.type(*(flags or GO_ON))
        require_one_error(code, said, exit_code, *words, "hint: ")
        assert printed == ""
        assert all_bytes(self.folder) == before

    def change(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change the content of one of the newest checkpoint's files, so that it is as if written so."""
        path = self.folder / NEWEST / name
        content = change(torch.load(path, weights_only=True))
        replace(path, lambda: torch.save(content, path))
        self.sign()

    def sign(self) -> None:
        """Write the hashes of the newest checkpoint's files anew."""
        manifest = self.folder / NEWEST / "manifest.json"
        content = json.loads(manifest.read_text())
        content["sha256"] = {name: sha256_of(manifest.with_name(name)) for name in content["sha256"]}
        replace(manifest, lambda: manifest.write_text(json.dumps(content)))


def replace(path: Path, write: Callable[[], Any]) -> None:
    """Write a file anew: it may share its bytes with that of other tests."""
    path.unlink()
    write()


@pytest.fixture
def runs(finished: Path, tmp_path: Path, here: Here) -> Runs:
    """The large files are links: nobody writes into them."""

    def link(source: str, copy: str) -> None:
        (os.link if source.endswith(".pt") else shutil.copyfile)(source, copy)

    shutil.copytree(finished, tmp_path / "copy", symlinks=True, copy_function=link)
    return Runs(tmp_path / "copy", here)

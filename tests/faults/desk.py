"""A desk at which somebody types commands: a sound source to be spoilt, and what dedetr then says."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.annotations.faults import HINTS
from core.api import prepare_data
from core.errors import DedetrError
from dedetr_cli.app import app
from tests.annotations.conftest import CocoDict, all_bytes, make_coco_layout, write_json
from tests.faults.shell import Here

Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Desk:
    """A folder with a source in COCO's layout in `coco`: 5 images with 8 boxes for train, 3 with 4 for val.

    The two classes have the ids 3 and 7; each image but the last of a split has a box of both.
    """

    folder: Path
    here: Here

    @property
    def source(self) -> Path:
        """The source."""
        return self.folder / "coco"

    def annotation_file(self, split: str = "train") -> Path:
        """Return the source's annotation file of a split."""
        return self.source / "annotations" / f"instances_{split}2017.json"

    def image(self, name: str = "001.png") -> Path:
        """Return an image of the train split; 001.png to 004.png have two boxes each, 005.png none."""
        return self.source / "train2017" / name

    def edit(self, change: Callable[[CocoDict], Any], split: str = "train") -> None:
        """Change a split's annotation file."""
        content = json.loads(self.annotation_file(split).read_text())
        change(content)
        write_json(self.annotation_file(split), content)

    def put(self, *path_and_value: Any) -> None:
        """Set one value of the train split's file: put("annotations", 2, "bbox", None)."""
        *path, key, value = path_and_value

        def change(content: Any) -> None:
            for part in path:
                content = content[part]
            content[key] = value

        self.edit(change)

    def run(self, *words: object) -> tuple[int, str, str]:
        """Type a command; return its exit code, stdout and stderr."""
        return self.here(*map(str, words), cwd=self.folder, OMP_NUM_THREADS="1", DEDETR_RUN__DEVICE="cpu")

    def accept(self, *words: object) -> str:
        """Type a command that succeeds; return all that it says."""
        code, out, err = self.run(*words)
        assert code == 0, err
        return out + err

    def refuse(self, *words: object, exit_code: int = 3, code: str | None = None) -> DedetrError:
        """Type a command that ends with this exit code, in one line and a hint, and leaves every file as it was.

        Returns:
            The error behind that line.
        """
        before = all_bytes(self.folder)
        found, _, err = self.run(*words)
        lines = err.splitlines()
        assert found == exit_code, err
        assert "Traceback" not in err
        with pytest.raises(DedetrError) as raised:
            typed(self.folder, *words)
        error = raised.value
        assert all_bytes(self.folder) == before
        assert error.code == code, error
        told = [line for line in lines if line.startswith("error: ")]
        assert len(told) == 1
        assert error.where
        assert told[0].endswith(f" [{code}]" if code else "")
        assert error.hint or error.code in HINTS, told[0]
        return error

    def refuse_source(self, code: str, *flags: object, exit_code: int = 3) -> DedetrError:
        """Type `prepare-data` for the source, which is refused with this code."""
        return self.refuse("prepare-data", "coco", *flags, exit_code=exit_code, code=code)

    def drop(self, **options: Any) -> tuple[dict[str, int], CocoDict]:
        """Prepare the source without what cannot be used.

        Returns:
            How many faults there were by code, and what was written of the train split.
        """
        report = prepare_data(self.source, self.folder / "data", drop_invalid=True, **options)
        for fault in report.faults:
            assert len(fault.places) == fault.count
            assert f"left out, {fault.title} ({fault.code}): {fault.count}" in report.notes
        written: CocoDict = json.loads((self.folder / "data" / "annotations" / "train.json").read_text())
        return {fault.code: fault.count for fault in report.faults if fault.severity == "error"}, written


@pytest.fixture
def desk(tmp_path: Path, here: Here) -> Desk:
    """Set up a desk for one test."""
    make_coco_layout(tmp_path / "coco")
    return Desk(tmp_path, here)


def cut(path: Path) -> None:
    """Cut off the end of a file."""
    path.write_bytes(path.read_bytes()[:-30])


def typed(folder: Path, *words: object) -> str:
    """Type a command, and let what it raises through, which else ends it with a line and an exit code.

    Returns:
        What it said.
    """
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.chdir(folder)
        patch.setenv("DEDETR_RUN__DEVICE", "cpu")
        app([str(word) for word in words], prog_name="dedetr", standalone_mode=False)
    return said.getvalue()

"""A few dozen spoilt files for everything that reads, always the same; `python benchmarks/fuzz.py` takes more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from core.annotations.images import MAX_PIXELS
from core.annotations.readers import voc
from core.annotations.records import ImageRecord
from tests.faults.fuzz import FREE_BYTES, READ, Example, Finding, Memory, Target, attempt, fuzz, run
from tests.faults.fuzz_targets import TARGETS

NUM_EXAMPLES = 24
BY_NAME = {target.name: target for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS, ids=list(BY_NAME))
def test_spoilt_files_are_read_or_refused(target: Target, tmp_path: Path) -> None:
    fuzz(target, tmp_path, NUM_EXAMPLES, Memory())


@pytest.mark.parametrize("target", TARGETS, ids=list(BY_NAME))
def test_sound_files_are_read(target: Target, tmp_path: Path) -> None:
    for source in target.sources:
        example = dict(source())
        outcomes = (run(target, Example(example, seed), tmp_path, Memory()) for seed in range(8))  # options differ
        assert READ in outcomes or list(example) == ["float.tif"]


def read_badly(root: Path, random: Random) -> str:
    return attempt(lambda: int((root / "a.txt").read_bytes()))


def read_into_much_memory(root: Path, random: Random) -> str:
    return attempt(lambda: bytearray(2 * FREE_BYTES) if (root / "a.txt").read_bytes() != b"1" else None)


@pytest.mark.parametrize(
    ("use", "said"), [(read_badly, "ValueError"), (read_into_much_memory, f"took {2 * FREE_BYTES // 10**6}")]
)
def test_what_is_wrong_is_found(use: Callable[[Path, Random], str], said: str, tmp_path: Path) -> None:
    target = Target("bad", (lambda: {"a.txt": b"1"},), {".txt": BY_NAME["YOLO: labels"].spoils["a.txt"]}, use, 0)
    with pytest.raises(Finding, match=said) as caught:
        fuzz(target, tmp_path, 200, Memory(is_traced=True))
    assert caught.value.example.tree.keys() == {"a.txt"}
    assert not list(tmp_path.iterdir())


def test_what_does_not_survive_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def huge(ident: int, name: str, width: int, height: int) -> ImageRecord:
        return ImageRecord(ident, name, MAX_PIXELS, height)

    monkeypatch.setattr(voc, "ImageRecord", huge)
    target = BY_NAME["Pascal VOC: XML"]
    with pytest.raises(Finding, match="its COCO file is refused"):
        run(target, Example(dict(target.sources[0]()), 1), tmp_path, Memory())

"""What the functions of the door share: where runs are, who is told what, and what must not be replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from core.errors import UsageError
from core.files import require_writable_folder

RUNS = Path("runs")
LATEST = RUNS / "latest"

Say = Callable[[str], None]
OnImages = Callable[[int, int], None]
"""Is told how many of how many images are done."""


def say_nothing(_message: str) -> None:
    """Take a note, and tell nobody."""


def count_nothing(_done: int, _total: int) -> None:
    """Take a count, and tell nobody."""


def keep_originals(out: Path, images: Sequence[Path], pictures: Sequence[Path]) -> None:
    """Check that a folder can be written, and that no picture in it would replace one of the images.

    Raises:
        UsageError: a picture would.
        MachineError: the folder cannot be written.
    """
    require_writable_folder(out)
    originals = {image.resolve() for image in images}
    if any(picture.resolve() in originals for picture in pictures):
        raise UsageError("the pictures would replace the images themselves", where="--out", hint="name another folder")

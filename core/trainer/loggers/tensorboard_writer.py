"""Event files that TensorBoard shows: `tensorboard --logdir runs`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from core.trainer.loggers.writer import LoggedRun


class TensorBoardWriter:
    """Writes to `tensorboard/` in the run folder; each session of a run adds a file."""

    def __init__(self, run: LoggedRun) -> None:
        tensorboard: Any = importlib.import_module("torch.utils.tensorboard")
        # A resumed run makes its steps again from here: TensorBoard hides what a lost session logged of them.
        purge_step = run.first_step + 1 if run.first_step else None
        self._writer = tensorboard.SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `RunWriter`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """See `RunWriter`."""
        self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """See `RunWriter`."""
        self._writer.close()

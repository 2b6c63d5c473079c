"""What a logger is to dedetr, and which there are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from core.errors import MachineError

# By logger, what must be importable; torch's own door to TensorBoard finds packages that do not fit together.
_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class RunWriter(Protocol):
    """Takes the numbers and pictures of a run. What it raises ends this writer, not the run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers by name, such as `val/AP`; steps never fall."""

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Take a picture, by the same name at each step."""

    def close(self) -> None:
        """Write what is left."""


@dataclass(frozen=True)
class LoggedRun:
    """What a writer is opened for.

    Attributes:
        folder: the run's; writers make folders of their own in it.
        run_id: the same for all sessions of the run.
        first_step: steps done when this session begins; what was logged of later ones is void.
        config: all settings, as plain values.
    """

    folder: Path
    run_id: str
    first_step: int
    config: Mapping[str, Any]


def require_loggers(names: Sequence[str]) -> None:
    """Check that the packages of some loggers can be used, before any work is done.

    Args:
        names: of loggers, as `run.loggers` has them.

    Raises:
        MachineError: a package is missing, or does not fit the others here.
    """
    for name in names:
        _require(name)


def _require(name: str) -> None:
    try:
        importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        raise MachineError(f"{name} is not installed", where="run.loggers", hint=_install(name)) from error
    except Exception as error:
        # Not only ImportError: protobuf raises a TypeError where its version does not fit.
        raise MachineError(
            f"{name} cannot be imported: {describe(error)}", where="run.loggers", hint=_install(name)
        ) from error


def _install(name: str) -> str:
    return f"python -m pip install 'dedetr[{name}]'"


def open_writers(names: Sequence[str], run: LoggedRun, warn: Callable[[str], None]) -> dict[str, RunWriter]:
    """Open writers by name; of one that cannot be opened the user is warned, and the run goes on without it.

    Args:
        names: as `run.loggers` has them, checked by `require_loggers`.
        run: what is to be logged.
        warn: is told what the user should know.
    """
    opened = {name: _open(name, run, warn) for name in dict.fromkeys(names)}
    return {name: writer for name, writer in opened.items() if writer is not None}


def _open(name: str, run: LoggedRun, warn: Callable[[str], None]) -> RunWriter | None:
    try:
        if name == "tensorboard":
            from core.trainer.loggers.tensorboard_writer import TensorBoardWriter

            return TensorBoardWriter(run)
        if name == "wandb":
            from core.trainer.loggers.wandb_writer import WandbWriter

            return WandbWriter(run, warn)
    except Exception as error:  # noqa: BLE001 (whatever it is, the run is worth more than its log)
        warn(f"{name} cannot be used, the run goes on without it: {describe(error)}")
        return None
    raise ValueError(f"there is no logger '{name}'")


def describe(error: Exception) -> str:
    """Return an error of somebody else's package on one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]

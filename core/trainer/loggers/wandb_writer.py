"""Weights & Biases."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from PIL import Image

from core.trainer.loggers.writer import LoggedRun, describe


class WandbWriter:
    """Writes to `wandb/` in the run folder, and to the user's account where there is one.

    Wandb reads its own variables (`WANDB_MODE`, `WANDB_PROJECT`, ...) and finds the user's key. Without one, or where
    its server does not answer, it is used offline: `wandb sync` sends the run later.

    Args:
        run: what is to be logged; its id is the run's id there, so that a resumed run goes on in the same charts.
        warn: is told when it is used offline, though nobody asked for that.
    """

    def __init__(self, run: LoggedRun, warn: Callable[[str], None]) -> None:
        import wandb

        self._wandb: Any = wandb
        options: dict[str, Any] = {
            "dir": str(run.folder),
            "project": os.environ.get("WANDB_PROJECT") or "dedetr",
            "name": os.environ.get("WANDB_NAME") or run.folder.resolve().name,
            "id": run.run_id,
            "resume": "allow",
            "config": dict(run.config),
        }
        # It is not to copy stdout and stderr, unless asked: they hold results, and bars that are drawn over and over.
        if "WANDB_CONSOLE" not in os.environ:
            options["settings"] = self._wandb.Settings(console="off")
        error = self._open(options)
        if error is not None:
            warn(f"wandb is used offline, `wandb sync` sends the run later: {describe(error)}")

    def _open(self, options: Mapping[str, Any]) -> Exception | None:
        """Begin the run; return the error that keeps it offline, if there is one."""
        with _apart_from_the_terminal():
            try:
                self._run = self._wandb.init(**options)
            except self._wandb.Error as error:
                # What is left of the attempt would hold the run's id.
                with contextlib.suppress(SystemExit):
                    self._wandb.teardown()
                self._run = self._wandb.init(**options, mode="offline")
                return cast(Exception, error)
        return None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `RunWriter`."""
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """See `RunWriter`."""
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """See `RunWriter`."""
        self._run.finish()


@contextlib.contextmanager
def _apart_from_the_terminal() -> Iterator[None]:
    """Let stdin be empty and stdout be stderr meanwhile.

    Where wandb sees a terminal and finds no key, it would ask and wait. The service that it starts keeps the stdout
    that it began with, and may write there; ours is for results.
    """
    with Path(os.devnull).open(encoding="utf-8") as empty, contextlib.ExitStack() as afterwards:
        sys.stdout.flush()
        stdout = os.dup(1)
        afterwards.callback(os.close, stdout)
        afterwards.callback(os.dup2, stdout, 1)
        os.dup2(2, 1)
        afterwards.callback(setattr, sys, "stdin", sys.stdin)
        sys.stdin = empty
        yield

"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dedetr_cli.completion import complete_device

_state = {"debug": False}


def _set_debug(value: bool) -> bool:
    _state["debug"] = _state["debug"] or value
    return value


def debug_wanted() -> bool:
    """Tell whether the running command was given --debug."""
    return _state["debug"]


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DataRoot = Annotated[
    Path, typer.Option("--data", help="The data set: what prepare-data wrote, or a COCO or Cityscapes folder.")
]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="A run folder, a checkpoint folder or a weight file. (default: runs/latest)"),
]
Device = Annotated[
    str | None, typer.Option("--device", autocompletion=complete_device, help="auto, cpu, cuda, cuda:N or mps.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration, e.g. data.short_side=480."),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-checkpoint", help="Unpickle the file even if it could run code: only for files you made."),
]

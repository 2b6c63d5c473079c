"""`dedetr doctor`: what this machine can do, and what it lacks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from dedetr_cli.options import Debug, Json
from dedetr_cli.output import one_line, print_json, print_note, stdout

if TYPE_CHECKING:
    from core.api import Check

_STYLES = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}


def doctor(
    data: Annotated[Path | None, typer.Option("--data", help="A data set to open as well.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at versions, devices, operators, memory, disks and folders, and say what to mend.

    Each line is ok, warn (works, but something is missing or slow) or fail; the exit code is 0 where nothing fails, 3
    where only the data set does, else 5. No network is used.

    Examples:

      dedetr doctor

      dedetr doctor --data data --json
    """
    from core import api

    diagnosis = api.diagnose(data)
    error = diagnosis.error()
    if as_json:
        print_json("doctor", {"checks": [_as_dict(check) for check in diagnosis.checks]}, error)
    else:
        width = max(len(check.name) for check in diagnosis.checks)
        for check in diagnosis.checks:
            stdout().print(_line(check, width))
            if check.hint:
                stdout().print(Text(f"      hint: {one_line(check.hint)}"))
    if error is not None:
        raise error
    if not as_json:
        num_warnings = len(diagnosis.having("warn"))
        print_note(f"nothing failed, warnings: {num_warnings}")


def _line(check: Check, width: int) -> Text:
    status = (f"{check.status:<4}", _STYLES[check.status])
    return Text.assemble(status, f"  {check.name:<{width}}  {one_line(check.value)}")


def _as_dict(check: Check) -> dict[str, Any]:
    fields = dataclasses.asdict(check)
    return {name: fields[name] for name in ("name", "status", "value", "hint")}

"""Every setting of a run with its origin, printed so that `--config` reads it again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
import yaml

from dedetr_cli.output import one_line, print_json

if TYPE_CHECKING:
    from core.api import Setting

_COMMENT_COLUMN = 40


def print_settings(settings: Sequence[Setting], *, as_json: bool) -> None:
    """Print settings as YAML with their origins in comments, or as JSON by key."""
    if as_json:
        by_key = {".".join(found.path): {"value": found.value, "origin": found.origin} for found in settings}
        print_json("train", {"config": by_key})
        return
    section = ""
    # Not through rich, which would wrap long lines and cut comments off from their values.
    for found in settings:
        if found.path[0] != section:
            section = found.path[0]
            typer.echo(f"{section}:")
        typer.echo(_yaml_line(found))


def _yaml_line(setting: Setting) -> str:
    """Return `  key: value  # origin`, a line whatever the value is."""
    text = yaml.safe_dump(setting.value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
    return f"  {setting.path[1]}: {text}".ljust(_COMMENT_COLUMN) + f"  # {one_line(setting.origin)}"

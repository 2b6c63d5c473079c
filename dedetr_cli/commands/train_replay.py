"""`dedetr train --replay FILE`: a step that diverged, made again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import typer

from dedetr_cli.commands.train_options import flag_of, settings_of
from dedetr_cli.output import as_dict, print_json, print_note, stdout
from dedetr_cli.tables import replay_tables

_ALLOWED = {"replay", "set_", "as_json", "debug"}
"""Parameters that are no settings; of these `core.api.replay` knows which it can take."""


def replay(given: Mapping[str, Any]) -> None:
    """Print what the step came to.

    Args:
        given: the parameters of `dedetr train` by name.

    Raises:
        DivergedError: it has diverged again.
        DedetrError: it could not be made again; see `core.api.replay`.
    """
    from core import api

    settings = settings_of(given)
    for name, value in given.items():
        if name not in _ALLOWED and value and flag_of(name) not in {flag for flag, _ in settings.values()}:
            raise typer.BadParameter("has no meaning with --replay", param_hint=flag_of(name))
    if not api.is_main_process():
        return
    report = api.replay(given["replay"], flags=settings, assignments=given["set_"] or [])
    error = report.error()
    if given["as_json"]:
        print_json("train", {"replay": _with_texts(as_dict(report))}, error)
    else:
        for made in replay_tables(report):
            stdout().print(made)
    if error is not None:
        raise error
    if not given["as_json"]:
        print_note("all numbers were finite this time")


def _with_texts(value: Any) -> Any:
    """Return a result with texts for numbers that are not finite, which JSON has none for."""
    if isinstance(value, dict):
        return {key: _with_texts(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_texts(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

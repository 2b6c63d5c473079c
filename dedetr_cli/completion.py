"""What a shell offers for the values of flags; called when Tab is pressed, so nothing slow is loaded."""

from __future__ import annotations

from pathlib import Path

import typer

DATA = "data"
"""Where a data set is sought, as by the commands themselves."""


def complete_model(incomplete: str) -> list[str]:
    """Return the models that begin so."""
    from core import api

    return [name for name in api.model_names() if name.startswith(incomplete)]


def complete_preset(incomplete: str) -> list[str]:
    """Return the presets that begin so."""
    from core import api

    return [name for name in api.preset_names() if name.startswith(incomplete)]


def complete_class(incomplete: str) -> list[str]:
    """Return the classes of the data set in `data` that begin so, behind those already named before a comma."""
    from core import api

    before, comma, last = incomplete.rpartition(",")
    names = (f'"{name}"' if "," in name else name for name in api.class_names(Path(DATA)))
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


def complete_subset(context: typer.Context, incomplete: str) -> list[str]:
    """Return the subset files that begin so, of the data set that the line names."""
    from core import api

    return [name for name in api.subset_names(Path(context.params.get("data") or DATA)) if name.startswith(incomplete)]


def complete_format(incomplete: str) -> list[str]:
    """Return the formats of sources that begin so."""
    from core import api

    return [name for name in api.format_names() if name.startswith(incomplete)]


def complete_export(incomplete: str) -> list[str]:
    """Return the formats that can be written that begin so."""
    from core import api

    return [name for name in api.export_format_names() if name.startswith(incomplete)]


def complete_split(incomplete: str) -> list[str]:
    """Return the parts of a data set that begin so."""
    return [name for name in ("train", "val", "test") if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """Return the kinds of device that begin so."""
    return [name for name in ("auto", "cpu", "cuda", "mps") if name.startswith(incomplete)]


def complete_mode(incomplete: str) -> list[str]:
    """Return the pictures of `visualize` that begin so, behind those already named before a comma."""
    from core.api.visualization import ALL_MODES, MODES

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in (*MODES, ALL_MODES) if name.startswith(last)]

"""What a shell offers for the values of flags; called when Tab is pressed, so nothing slow is loaded."""

from __future__ import annotations


def complete_model(incomplete: str) -> list[str]:
    """Return the models that begin so."""
    from core import api

    return [name for name in api.model_names() if name.startswith(incomplete)]


def complete_preset(incomplete: str) -> list[str]:
    """Return the presets that begin so."""
    from core import api

    return [name for name in api.preset_names() if name.startswith(incomplete)]


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

"""The names that a user can choose from. Loads no PyTorch."""

from __future__ import annotations

from core.config.presets import preset_names
from core.models.specs import SPECS

__all__ = ["model_names", "preset_names"]


def model_names() -> list[str]:
    """Return the names of all models, as `--model` takes them."""
    return list(SPECS)

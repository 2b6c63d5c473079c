"""Presets: named settings that ship with dedetr, as YAML files beside this module."""

from __future__ import annotations

from importlib import resources

from core.config.layers import Layer
from core.config.yaml_file import parse_yaml_mapping
from core.errors import UsageError, nearest


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    folder = resources.files("core.config") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def preset_layer(name: str) -> Layer:
    """Return a preset as a layer of configuration.

    Raises:
        UsageError: there is no such preset.
    """
    names = preset_names()
    if name not in names:
        raise UsageError(f"unknown preset '{name}'", where="--preset", hint=nearest(name, names))
    text = (resources.files("core.config") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    mapping = parse_yaml_mapping(text, f"preset {name}")
    return Layer(mapping.values, f"preset {name}")

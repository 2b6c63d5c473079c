"""Presets: named settings that ship with dedetr. The paper's stand in `core.config.paper`, others are YAML files."""

from __future__ import annotations

from importlib import resources

from core.config.layers import Layer
from core.config.paper import PREFIX, paper_preset, paper_preset_names
from core.config.yaml_file import parse_yaml_mapping
from core.errors import UsageError, nearest


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted([*_file_names(), *paper_preset_names()])


def preset_layer(name: str) -> Layer:
    """Return a preset as a layer of configuration.

    Raises:
        UsageError: there is no such preset.
    """
    origin = f"preset {name}"
    if name in paper_preset_names():
        return Layer(paper_preset(name), origin)
    files = _file_names()
    if name not in files:
        # The paper's are many: they are listed for somebody who looks for one of them.
        choices = preset_names() if "/" in name else [*files, f"{PREFIX}DATA/MODEL"]
        raise UsageError(f"unknown preset '{name}'", where="--preset", hint=nearest(name, choices))
    text = (resources.files("core.config") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return Layer(parse_yaml_mapping(text, origin).values, origin)


def _file_names() -> list[str]:
    folder = resources.files("core.config") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))

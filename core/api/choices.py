"""The names that a user can choose from. Loads no PyTorch."""

from __future__ import annotations

from pathlib import Path

from core.annotations.prepared import open_dataset
from core.config.presets import preset_names
from core.errors import DedetrError
from core.models.specs import SPECS

__all__ = [
    "class_names",
    "export_format_names",
    "format_names",
    "hint_for",
    "model_names",
    "preset_names",
    "subset_names",
]

_MANIFEST_SUFFIX = ".manifest.json"


def model_names() -> list[str]:
    """Return the names of all models, as `--model` takes them."""
    return list(SPECS)


def format_names() -> list[str]:
    """Return the formats that `prepare-data` reads, as `--format` takes them."""
    from core.annotations.readers.table import format_names as names

    return names()


def export_format_names() -> list[str]:
    """Return the formats that `prepare-data` writes, as `--export` takes them."""
    from core.annotations.writers.table import WRITERS

    return list(WRITERS)


def hint_for(code: str | None) -> str | None:
    """Return what to do about a kind of fault, where nothing closer is known."""
    from core.annotations.faults import HINTS

    return HINTS.get(code or "")


def class_names(data: Path) -> list[str]:
    """Return the classes of a data set by rising id; none where there is no data set that can be read."""
    try:
        return [category.name for category in open_dataset(data).classes]
    except (DedetrError, OSError):
        return []


def subset_names(data: Path) -> list[str]:
    """Return the subset files beside a data set's training annotations, as `--subset` takes them; perhaps none."""
    try:
        folder = open_dataset(data).splits["train"].annotation_file.parent
        manifests = sorted(folder.glob(f"*{_MANIFEST_SUFFIX}"))
    except (DedetrError, OSError, KeyError):
        return []
    return [manifest.name.removesuffix(_MANIFEST_SUFFIX) + ".json" for manifest in manifests]

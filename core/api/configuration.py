"""From what a user says to a checked configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.annotations.prepared import open_dataset
from core.api.common import LATEST, Say, say_nothing
from core.config.layers import (
    Layer,
    ResolvedConfig,
    assignments_layer,
    environment_layer,
    file_layer,
    highest_value,
    items_layer,
    resolve,
)
from core.config.presets import preset_layer
from core.config.yaml_file import KeyPath
from core.errors import CheckpointError, DedetrError
from core.models.specs import get_spec

NO_PRESET = "none"

Flags = Mapping[KeyPath, tuple[str, Any]]
"""Values by key path, each with the flag's name."""


def resolve_train_config(
    *,
    flags: Flags | None = None,
    assignments: Sequence[str] = (),
    config_file: Path | None = None,
    preset: str | None = None,
    environment: Mapping[str, str] | None = None,
    weights: Path | None = None,
    trust: bool = False,
    on_note: Say = say_nothing,
) -> ResolvedConfig:
    """Lay flag > assignment > environment > file > weights > preset > model > default over each other, and check it.

    Without a preset the data set's recommended recipe is taken, and `on_note` told. Only `weights` needs PyTorch.

    Args:
        flags: by key path, with the flag's name for messages.
        assignments: `section.key=value`.
        config_file: YAML.
        preset: a preset's name, or `none` to take no recipe either.
        environment: variables; those that begin with `DEDETR_` count.
        weights: the detector to start from; it decides on the architecture where nothing above says otherwise.
        trust: unpickle `weights` even if that could run code.
        on_note: is told which recipe was taken.

    Raises:
        UsageError: a key, value, file or preset cannot be used.
        DataError: there is no data set, or its description cannot be read.
        CheckpointError: the weights cannot be read.
    """
    layers = [file_layer(config_file)] if config_file else []
    layers += [environment_layer(environment or {}), assignments_layer(assignments), _flag_layer(flags or {})]
    if weights is not None:
        from core.api.starting_weights import weights_layer

        layers.insert(0, weights_layer(weights, trust=trust))
    if preset is None:
        layers[:0] = _recipe_layers(layers, on_note)
    elif preset != NO_PRESET:
        layers.insert(0, preset_layer(preset))
    return resolve(layers, _model_defaults)


def _recipe_layers(layers: Sequence[Layer], on_note: Say) -> list[Layer]:
    """Return the recipe of the data set that these layers name, if it has one."""
    data_root = highest_value(layers, ("data", "root"))
    if not isinstance(data_root, str):
        resolve(layers, _model_defaults)  # which refuses it
        return []
    try:
        recipe = open_dataset(Path(data_root)).recipe
    except DedetrError:
        resolve(layers, _model_defaults)  # what is wrong with the settings is told first
        raise
    if recipe is None:
        return []
    on_note(f"took the recipe '{recipe}' that {data_root} recommends (--preset none refuses it)")
    return [preset_layer(recipe)]


def resume_config(
    run: Path | None = None, *, flags: Flags | None = None, assignments: Sequence[str] = ()
) -> ResolvedConfig:
    """Return the configuration of a run to resume, with what is said now laid over it.

    Raises:
        CheckpointError: there is no such run.
        UsageError: a key or value cannot be used.
    """
    from core.trainer.pointers import pointed_to

    folder = pointed_to(run or LATEST)
    if folder is None or not (folder / "config.yaml").is_file():
        where = str(run or LATEST)
        raise CheckpointError("there is no run to resume", where=where, hint="name its folder with --out")
    file = folder / "config.yaml"
    return resolve([file_layer(file), assignments_layer(assignments), _flag_layer(flags or {})], _model_defaults)


def _flag_layer(flags: Flags) -> Layer:
    values = {path: value for path, (_, value) in flags.items()}
    return items_layer(values, {path: flag for path, (flag, _) in flags.items()}, "flag")


def _model_defaults(name: str) -> Mapping[str, Any]:
    return get_spec(name).config_defaults()

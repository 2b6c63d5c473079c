"""The layers that fill the configuration, the higher over the lower: flag, --set, environment, file, preset, model.

Every value keeps its origin, so that an error can say where the bad value stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from core.config.schema import Config
from core.config.yaml_file import KeyPath, parse_scalar, read_yaml_mapping
from core.errors import UsageError, nearest

ENVIRONMENT_PREFIX = "DEDETR_"

_EXCLUSIVE: dict[KeyPath, KeyPath] = {
    ("label_augmentation", "repeat_ratio"): ("label_augmentation", "repeat_time"),
    ("label_augmentation", "repeat_time"): ("label_augmentation", "repeat_ratio"),
    ("schedule", "lr_drop_epoch"): ("schedule", "lr_drop_step"),
    ("schedule", "lr_drop_step"): ("schedule", "lr_drop_epoch"),
    ("schedule", "epochs"): ("schedule", "steps"),
}
"""Setting the one clears what lower layers set for the other (`epochs` cannot be cleared: `steps` goes before it)."""

_MAX_SHOWN = 200

DEFAULT = "default"
FROM_SCRATCH = "default, as backbone.weights is null"
"""Origin of what the schema itself fits to a backbone without pretrained weights."""


@dataclass(frozen=True)
class Layer:
    """Some values of the configuration, and where each of them stands."""

    values: Mapping[str, Any]
    origin: str
    origins: Mapping[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """Return the place of a value: a file and line, a flag, a variable."""
        return self.origins.get(path, self.origin)


@dataclass(frozen=True)
class Setting:
    """One value of a configuration and where it stands."""

    path: KeyPath
    value: Any
    origin: str


@dataclass(frozen=True)
class ResolvedConfig:
    """A checked configuration and the origin of every value that is not a default."""

    config: Config
    origins: Mapping[KeyPath, str]

    def settings(self) -> list[Setting]:
        """Return every value with its origin, in the schema's order."""
        defaults = dict(_leaves(Config().model_dump()))
        return [
            Setting(path, value, self.origins.get(path) or (DEFAULT if value == defaults[path] else FROM_SCRATCH))
            for path, value in _leaves(self.config.model_dump())
        ]


def file_layer(path: Path) -> Layer:
    """Read a YAML file as a layer; errors as in `read_yaml_mapping`."""
    mapping = read_yaml_mapping(path)
    return Layer(mapping.values, str(path), {key: f"{path}:{line}" for key, line in mapping.lines.items()})


def assignments_layer(assignments: Sequence[str]) -> Layer:
    """Read `--set section.key=value` flags; a later one wins.

    Raises:
        UsageError: one of them has no `=` or no key.
    """
    items: dict[KeyPath, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            raise UsageError(
                f"expected section.key=value, got {assignment!r}",
                where="--set",
                hint="for example --set data.short_side=480",
            )
        items[path] = parse_scalar(text, f"--set {key.strip()}")
    return items_layer(items, {path: f"--set {'.'.join(path)}" for path in items}, "--set")


def environment_layer(environment: Mapping[str, str]) -> Layer:
    """Read variables such as `DEDETR_OPTIMIZER__LR=1e-4`: section and key joined by two underscores."""
    items: dict[KeyPath, Any] = {}
    origins: dict[KeyPath, str] = {}
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        path = tuple(name[len(ENVIRONMENT_PREFIX) :].lower().split("__"))
        items[path] = parse_scalar(text, name)
        origins[path] = name
    return items_layer(items, origins, "environment")


def items_layer(items: Mapping[KeyPath, Any], origins: Mapping[KeyPath, str], origin: str) -> Layer:
    """Make a layer of values by key path."""
    values: dict[str, Any] = {}
    for path, value in items.items():
        _put(values, path, value)
    return Layer(values, origin, origins)


def highest_value(layers: Sequence[Layer], path: KeyPath) -> Any:
    """Return the value that will hold, before it is checked: that of the highest layer with one, or the default."""
    for layer in reversed(layers):
        leaves = dict(_leaves(layer.values))
        if path in leaves:
            return leaves[path]
    return dict(_leaves(Config().model_dump()))[path]


def resolve(layers: Sequence[Layer], model_defaults: Callable[[str], Mapping[str, Any]]) -> ResolvedConfig:
    """Lay the layers over each other, the first lowest, and check the result.

    Args:
        layers: from lowest to highest.
        model_defaults: gives a model's own settings by its name; they go below all layers.

    Raises:
        UsageError: unknown keys (with the nearest known one), wrong types, values out of range: all at once.
    """
    merged, origins = _merge(layers)
    section = merged.get("model")
    name = section.get("name", Config().model.name) if isinstance(section, dict) else Config().model.name
    if isinstance(name, str):
        merged, origins = _merge([Layer(model_defaults(name), f"model {name}"), *layers])
    try:
        return ResolvedConfig(Config.model_validate(merged), origins)
    except ValidationError as error:
        raise _usage_error(error, origins) from error


def resolve_over(
    config: Config, layers: Sequence[Layer], *, fixed: Collection[str], changeable: Collection[str]
) -> Config:
    """Lay values over a configuration that is checked already, such as a checkpoint's.

    Args:
        config: what holds where the layers are silent.
        layers: from lowest to highest.
        fixed: sections that must stay as they are.
        changeable: keys of them, as `section.key`, that may change all the same.

    Raises:
        UsageError: as `resolve`; or a key is fixed.
    """
    for layer in layers:
        for path, _ in _leaves(layer.values):
            if path[0] in fixed and ".".join(path) not in changeable:
                raise UsageError(
                    f"'{'.'.join(path)}' is fixed by the checkpoint",
                    where=layer.where(path),
                    hint="train anew to change it",
                )
    return resolve([Layer(config.model_dump(), "checkpoint"), *layers], lambda _: {}).config


def _merge(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    merged: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    for layer in layers:
        leaves = _leaves(layer.values)
        for path, value in leaves:
            other = _EXCLUSIVE.get(path)
            if other and value is not None and other in origins:
                _put(merged, other, None)
                origins[other] = layer.where(path)
        for path, value in leaves:
            _put(merged, path, value)
            origins[path] = layer.where(path)
    return merged, origins


def _leaves(values: Mapping[str, Any], prefix: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    found: list[tuple[KeyPath, Any]] = []
    for key, value in values.items():
        path = (*prefix, str(key))
        found += _leaves(value, path) if isinstance(value, Mapping) and value else [(path, value)]
    return found


def _put(values: dict[str, Any], path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        inner = values.get(part)
        if not isinstance(inner, dict):
            inner = values[part] = {}
        values = inner
    values[path[-1]] = value


def _usage_error(error: ValidationError, origins: Mapping[KeyPath, str]) -> UsageError:
    lines: list[str] = []
    hint: str | None = None
    places: list[str] = []
    for detail in error.errors(include_url=False):
        path = tuple(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            text = f"unknown key '{'.'.join(path)}'"
            hint = hint or nearest(path[-1], _keys_of(path[:-1]))
        else:
            shown = f" (got {_shortened(detail['input'])})" if not isinstance(detail["input"], dict) else ""
            reason = detail["msg"].removeprefix("Value error, ")
            text = f"{'.'.join(path)}: {reason[:1].lower()}{reason[1:]}{shown}"
        lines.append(text)
        places.append(_place(path, text, origins))
    hint = hint or "`dedetr train --show-config` lists every key"
    known = [place for place in dict.fromkeys(places) if place]
    if len(lines) == 1 or len(known) == 1:
        return UsageError("; ".join(lines), where=known[0] if known else None, hint=hint)
    shown_lines = (f"{text} [{place}]" if place else text for text, place in zip(lines, places, strict=True))
    return UsageError("; ".join(shown_lines), where="configuration", hint=hint)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _place(path: KeyPath, text: str, origins: Mapping[KeyPath, str]) -> str:
    """Return where a bad value stands.

    An entry of a list stands where the list does; a section where those of its values do that the message names.
    """
    for length in range(len(path), 1, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    below = {key: origin for key, origin in origins.items() if key[: len(path)] == path}
    named = [origin for key, origin in below.items() if re.search(rf"\b{re.escape(key[-1])}\b", text)]
    return ", ".join(dict.fromkeys(named or [*below.values()][-1:]))


def _keys_of(path: KeyPath) -> list[str]:
    section: type[BaseModel] = Config
    for part in path:
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return list(section.model_fields)
        section = annotation
    return list(section.model_fields)

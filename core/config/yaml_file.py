"""YAML as data only: no tags that execute, no key twice, every value with the line it stands on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core.errors import UsageError
from core.files import YAML_SLIPS

KeyPath = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-4` as the number people mean (YAML 1.1 makes a text of it), and no endless numbers."""

    def construct_short_int(self, node: yaml.ScalarNode) -> int:
        """Return a whole number of at most 64 bits: Python refuses to print much longer ones."""
        number: int = self.construct_yaml_int(node)
        if number.bit_length() > _MAX_BITS:
            raise ValueError(f"a whole number of more than {_MAX_BITS} bits")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_short_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


_MAX_KEYS = 10_000
_MAX_BITS = 64


@dataclass(frozen=True)
class YamlMapping:
    """A nested mapping with text keys, and the line (from 1) of every key path."""

    values: dict[str, Any]
    lines: dict[KeyPath, int]


_YAML_ERRORS = (yaml.YAMLError, *YAML_SLIPS)


def parse_scalar(text: str, where: str | None = None) -> Any:
    """Read one value as YAML would: numbers, true/false, null, [lists], else text.

    Args:
        text: the value.
        where: the flag or variable that it stands in, for messages.

    Raises:
        UsageError: the text is not YAML, or means more values than anybody types.
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except _YAML_ERRORS as error:
        raise UsageError(f"cannot read {text[:80]!r} as a value: {_problem(error)}", where=where) from error
    _require_few(value, where)
    return value


def read_yaml_mapping(path: Path) -> YamlMapping:
    """Read a file whose top level is a mapping.

    Raises:
        UsageError: the file is missing, empty, not UTF-8, not YAML, asks for Python objects, repeats a key, or
            is no mapping; `where` names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError("there is no such file", where=str(path), hint="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from error
    return parse_yaml_mapping(text, str(path))


def parse_yaml_mapping(text: str, name: str) -> YamlMapping:
    """Read a text whose top level is a mapping; `name` stands for it in errors. See `read_yaml_mapping`."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise UsageError(f"is not valid YAML: {_problem(error)}", where=name) from error
    try:
        node = loader.get_single_node()
        if node is None:
            raise UsageError(
                "the file is empty", where=name, hint="write `section:` and indented keys, or leave it out"
            )
        if not isinstance(node, yaml.MappingNode):
            raise UsageError("the top level must be sections with keys", where=f"{name}:{node.start_mark.line + 1}")
        lines: dict[KeyPath, int] = {}
        values = _mapping(loader, node, (), lines, name)
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        hint = "check brackets, quotes and indentation there"
        if isinstance(error, yaml.constructor.ConstructorError):
            hint = "remove the tag: only words, numbers and lists are read"
        elif "\\t" in str(error):
            hint = "indent with spaces, not tabs"
        raise UsageError(f"is not valid YAML: {_problem(error)}", where=where, hint=hint) from error
    finally:
        loader.dispose()
    return YamlMapping(values, lines)


def _mapping(
    loader: _Loader, node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int], name: str
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError("a key must be a word", where=f"{name}:{line}")
        key = str(key_node.value)
        if key in result:
            raise UsageError(f"the key '{key}' stands twice", where=f"{name}:{line}", hint="remove one of them")
        here = (*path, key)
        lines[here] = line
        if len(lines) > _MAX_KEYS:  # a few lines of aliases can mean billions
            raise UsageError(f"has more than {_MAX_KEYS} keys", where=f"{name}:{line}")
        if isinstance(value_node, yaml.MappingNode):
            result[key] = _mapping(loader, value_node, here, lines, name)
        else:
            result[key] = loader.construct_object(value_node, deep=True)
            _require_few(result[key], f"{name}:{line}")
    return result


def _require_few(value: Any, where: str | None) -> None:
    """Refuse a value that aliases make huge, or part of itself: all that handles it goes through every copy."""
    waiting, num_values = [value], 0
    while waiting:
        inner = waiting.pop()
        num_values += 1
        if num_values > _MAX_KEYS:
            raise UsageError(f"means more than {_MAX_KEYS} values", where=where)
        if isinstance(inner, dict):
            waiting += inner.values()
        elif isinstance(inner, (list, tuple, set)):
            waiting += inner


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, (yaml.YAMLError, ValueError)):
        return "a value is not what its tag or its form says"
    problem = getattr(error, "problem", None)
    return (str(problem or error) or type(error).__name__).splitlines()[0]

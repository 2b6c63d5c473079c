"""`data.yaml` of a YOLO data set, every value as it is written: a class may be called no, 01 or 2020-01-01."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from core.annotations.readers.yolo_lines import read_text
from core.errors import DataError

_MAX_LETTERS = 1 << 20
"""Names of 20,000 classes; YAML is read slowly."""
_STANDARD = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Entry:
    """The value of a key, and its place as `file:line`; None stands for an empty value."""

    value: str | list[str | None] | dict[str, str | None] | None
    place: str


def read_entries(path: Path, keys: Collection[str]) -> dict[str, Entry]:
    """Read the values of some keys of a YAML file. Nothing in it is made into an object, let alone run.

    Raises:
        DataError: it cannot be read, is no YAML, asks for Python objects, has a key twice, or a value of `keys` is
            nested more deeply than a list or a mapping of words.
    """
    root = _compose(path)
    if not isinstance(root, yaml.MappingNode):
        raise DataError(
            "the file is empty" if root is None else "must have keys such as `train` and `names`",
            where=str(path),
            code="F01",
        )
    for node in _all_nodes(root):
        if not node.tag.startswith(_STANDARD) or node.tag.startswith(f"{_STANDARD}python"):
            raise DataError(
                f"the tag {node.tag.replace(_STANDARD, '!!')!r} is not read, as it could run a program",
                where=_place(path, node),
                hint="remove it",
                code="F01",
            )
    pairs = _pairs(path, root)
    return {key: Entry(_value(path, key, node), _place(path, node)) for key, node in pairs.items() if key in keys}


def _compose(path: Path) -> yaml.Node | None:
    text = read_text(path)
    if len(text) > _MAX_LETTERS:
        raise DataError(f"is too long: more than {_MAX_LETTERS} letters", where=str(path), code="F01")
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # PyYAML lets the latter two through
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise DataError(
            f"is not valid YAML: {problem.splitlines()[0] if problem else 'nested too deeply'}",
            where=f"{path}:{mark.line + 1}" if mark else str(path),
            hint="indent with spaces, not tabs" if "\\t" in str(error) else None,
            code="F01",
        ) from error


def _all_nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield every node once, also where aliases repeat it a million times."""
    waiting, seen = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        yield node
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        for child in children:
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)


def _pairs(path: Path, mapping: yaml.MappingNode) -> dict[str, yaml.Node]:
    pairs: dict[str, yaml.Node] = {}
    for key_node, value_node in mapping.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise DataError("a key must be a word", where=_place(path, key_node), code="F01")
        if key_node.value in pairs:
            raise DataError(
                f"the key {key_node.value!r} stands twice",
                where=_place(path, key_node),
                hint="remove one of them",
                code="F01",
            )
        pairs[key_node.value] = value_node
    return pairs


def _value(path: Path, key: str, node: yaml.Node) -> str | list[str | None] | dict[str, str | None] | None:
    if isinstance(node, yaml.ScalarNode):
        return _word(path, key, node)
    if isinstance(node, yaml.SequenceNode):
        return [_word(path, key, item) for item in node.value]
    assert isinstance(node, yaml.MappingNode)  # noqa: S101 - the third and last kind
    return {name: _word(path, key, item) for name, item in _pairs(path, node).items()}


def _word(path: Path, key: str, node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.ScalarNode):
        raise DataError(f"{key}: words are expected here, not lists in lists", where=_place(path, node), code="F02")
    return None if node.tag == f"{_STANDARD}null" else str(node.value)


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"

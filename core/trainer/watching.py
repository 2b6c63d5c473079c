"""Where numbers cease to be finite: in which module's output, and in which operation of the backward pass."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import core

_ROOT = Path(core.__file__).parent.parent
_ANOMALY = re.compile(r"Function '(\w+)' returned nan values")
_FRAME = re.compile(r'File "(.+?)", line (\d+), in (.+)')


@dataclasses.dataclass
class Sighting:
    """What was seen first, in the order in which things were computed; None where all was finite.

    Attributes:
        output: the module whose output was not finite.
        was_input_finite: whether that module was given finite numbers.
        gradient: the module whose output was reached by a gradient that was not finite.
        operation: of autograd that made NaN in the backward pass, and the line that it stands for where it is known.
    """

    output: str | None = None
    was_input_finite: bool = True
    gradient: str | None = None
    operation: str | None = None


@contextmanager
def watched(model: nn.Module) -> Iterator[Sighting]:
    """Watch the passes made in this context, which are slow then; the context ends at an operation that makes NaN."""
    sighting = Sighting()
    hooks = [
        module.register_forward_hook(_forward_hook(_name_of(name, module), sighting), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        with warnings.catch_warnings(record=True) as told, torch.autograd.set_detect_anomaly(True):
            warnings.simplefilter("always")
            yield sighting
    except RuntimeError as error:
        found = _ANOMALY.search(str(error))
        if found is None:
            raise
        sighting.operation = found[1] + _line_in("\n".join(str(warning.message) for warning in told))
    finally:
        for hook in hooks:
            hook.remove()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a module takes or gives: in tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def are_finite(value: Any) -> bool:
    """Tell whether all numbers of all tensors in a value are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors_in(value))


def _forward_hook(name: str, sighting: Sighting) -> Callable[..., None]:
    def look(_module: nn.Module, arguments: Any, named: Any, output: Any) -> None:
        if sighting.output is None and not are_finite(output):
            sighting.output = name
            sighting.was_input_finite = are_finite((arguments, named))
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(look_back)  # type: ignore[no-untyped-call]

    def look_back(gradient: Tensor) -> None:
        if sighting.gradient is None and not are_finite(gradient):
            sighting.gradient = name

    return look


def _name_of(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else "the model"


def _line_in(text: str) -> str:
    """Return the innermost line of our own code in a traceback, to put behind a name; empty where there is none."""
    frames = [(Path(file), number, function) for file, number, function in _FRAME.findall(text)]
    own = [frame for frame in frames if frame[0].is_relative_to(_ROOT / "core")]
    if not own:
        return ""
    file, number, function = own[-1]
    return f" of {file.relative_to(_ROOT).as_posix()}:{number} ({function})"

"""Parts of a network that training leaves as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import nn

_Network = TypeVar("_Network", bound="Freezable")


class Freezable(nn.Module):
    """A network of which parts can be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    def freeze(self, part: nn.Module) -> None:
        """Keep a part as it is: no gradients, and evaluation mode (statistics, dropout) for good."""
        part.requires_grad_(False)
        part.eval()
        self._frozen.append(part)

    def train(self: _Network, mode: bool = True) -> _Network:
        """Set the mode of all parts that are not frozen."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self


def untrained_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest parts of a module that have parameters, but none that trains."""
    trains = [parameter.requires_grad for parameter in module.parameters()]
    if any(trains):
        for child in module.children():
            yield from untrained_parts(child)
    elif trains:
        yield module

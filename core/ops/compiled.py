"""What to say when torchvision came without its compiled operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import MachineError


@contextmanager
def compiled_operators() -> Iterator[None]:
    """Run torchvision's NMS and RoIAlign.

    Raises:
        MachineError: torchvision was installed without its compiled operators.
    """
    try:
        yield
    except RuntimeError as error:
        if "C++ ops" not in str(error):
            raise
        raise MachineError(
            "this torchvision has no compiled operators, so there is neither NMS nor RoIAlign",
            where="torchvision",
            hint="install the torchvision that was built for your torch, see https://pytorch.org/get-started",
        ) from error

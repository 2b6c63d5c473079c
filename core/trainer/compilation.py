"""Training through `torch.compile`."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from core.errors import MachineError
from core.models.detector import Detector


def compile_model(model: Detector) -> None:
    """Compile the backbone and the encoder layers in place; the first steps take minutes, then.

    Graphs are compiled for any image size, again for a few kinds of batches (a single image, say), and beyond
    PyTorch's limit of graphs not at all. Results differ from those of the plain model by rounding. Decoders are left
    out: where they look depends on the images, which takes their layers apart into dozens of graphs.

    Args:
        model: on its device; keys and parameters stay as they are, and copies of it are not compiled.

    Raises:
        MachineError: nothing can be compiled on this machine.
    """
    _require_compiler(next(model.parameters()).device)
    for part in (model.backbone, *model.encoder.layers):
        part.compile(dynamic=True)


def compiled_code_unused() -> AbstractContextManager[object]:
    """Return a context in which compiled models run as written, as they do once they are loaded from a file."""
    context: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return context


def _require_compiler(device: torch.device) -> None:
    """Compile the smallest thing, as errors of the real ones come in the midst of a step, with pages of text."""
    try:
        torch.compile(torch.square)(torch.ones(8, device=device))
    except Exception as error:  # A compiler can fail in any way.
        raise MachineError(
            f"torch.compile does not work on this machine: {_reason(error)}",
            where="run.compile",
            hint="install a C++ compiler (g++) and Python's headers, or use run.compile=false"
            if device.type == "cpu"
            else "install the Triton that was built for your torch, and gcc, or use run.compile=false",
        ) from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]

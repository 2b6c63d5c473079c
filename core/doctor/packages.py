"""Which packages are installed, and whether they are those that dedetr needs."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from core.doctor.check import Check

PAIR_HINT = "install a torch and a torchvision that belong together, see https://pytorch.org/get-started"

_EXTRAS = {
    "fast-eval": ("hotcoco", "evaluates many times faster"),
    "timm": ("timm", "other backbones"),
    "tensorboard": ("tensorboard", "curves of a run"),
    "wandb": ("wandb", "curves of a run"),
    "slurm": ("submitit", "runs as jobs of Slurm"),
}
"""By extra of dedetr, the package that it brings, and what that is for."""


def look_at_python() -> Iterator[Check]:
    """Tell versions of dedetr and Python, and where they are."""
    folder = Path(__file__).parents[2]
    try:
        yield Check("dedetr", "ok", f"{metadata.version('dedetr')}, {folder}")
    except metadata.PackageNotFoundError:
        hint = f"python -m pip install {folder}"
        yield Check("dedetr", "warn", f"runs from {folder}, but is not installed", hint)
    yield Check("Python", "ok", f"{platform.python_version()}, {sys.executable}, {platform.platform()}")


def look_at_torch() -> Iterator[Check]:
    """Load PyTorch, and tell its version."""
    import torch

    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    yield _required("torch", torch.__version__, build)


def look_at_torchvision() -> Iterator[Check]:
    """Load torchvision, and tell whether it belongs to the installed PyTorch."""
    import torch
    import torchvision

    version: str = torchvision.__version__
    wanted = next((need for need in _requirements("torchvision") if need.name == "torch"), None)
    if wanted is not None and not wanted.specifier.contains(torch.__version__, prereleases=True):
        value = f"{version} was built for torch {wanted.specifier}, and this is torch {torch.__version__}"
        yield Check("torchvision", "warn", value, PAIR_HINT)
    else:
        yield _required("torchvision", version, f"fits torch {torch.__version__}")


def look_at_requirements() -> Iterator[Check]:
    """Compare all other packages that dedetr needs with what is installed; their code is not run."""
    num_fitting = 0
    for need in _requirements("dedetr"):
        if need.name in ("torch", "torchvision"):
            continue  # looked at by loading them
        version = _installed(need.name)
        if version is not None and need.specifier.contains(version, prereleases=True):
            num_fitting += 1
            continue
        found = f"is {version}, and must be {need.specifier}" if version else "is not installed"
        yield Check(need.name, "fail", found, f"python -m pip install '{need}'")
    if num_fitting:
        yield Check("other packages", "ok", f"{num_fitting}, of versions that are known to work")


def look_at_extras() -> Iterator[Check]:
    """Tell which packages are there that dedetr can do without."""
    needs = {need.name: need for need in _requirements("dedetr", extras=tuple(_EXTRAS))}
    for extra, (package, purpose) in _EXTRAS.items():
        install = f"python -m pip install 'dedetr[{extra}]'"
        version = _installed(package)
        is_there = version is not None and importlib.util.find_spec(package) is not None
        if not is_there:
            yield Check(package, "ok", f"not installed ({purpose}; optional: {install})")
        elif package in needs and not needs[package].specifier.contains(version or "", prereleases=True):
            yield Check(package, "warn", f"is {version}, and must be {needs[package].specifier}", install)
        else:
            yield Check(package, "ok", f"{version} ({purpose})")


def _required(name: str, version: str, more: str) -> Check:
    """Compare a version with what dedetr needs."""
    need = next((need for need in _requirements("dedetr") if need.name == name), None)
    if need is None or need.specifier.contains(version, prereleases=True):
        return Check(name, "ok", f"{version}, {more}")
    return Check(name, "fail", f"is {version}, and must be {need.specifier}", PAIR_HINT)


def _requirements(package: str, extras: tuple[str, ...] = ("",)) -> list[Requirement]:
    """Return what an installed package says that it needs here; nothing of one that is not installed."""
    try:
        needs = [Requirement(text) for text in metadata.requires(package) or []]
    except metadata.PackageNotFoundError:
        return []
    return [need for need in needs if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras)]


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

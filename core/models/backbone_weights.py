"""Pretrained weights of torchvision backbones: from a local file or torch's cache, from the network only on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from core.errors import MachineError, UsageError, nearest
from core.models.weight_files import find_state, load_exactly, read_weight_file

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
_CLASSIFIER_KEYS = ("fc.weight", "fc.bias")


def load_torchvision_weights(body: nn.Module, name: str, weights: str, *, download: bool = False) -> None:
    """Load pretrained weights into a ResNet without its classifier.

    Args:
        body: the network.
        name: its name at torchvision.
        weights: a file, or torchvision's name of the weights.
        download: fetch named weights that are not in torch's cache, and check their hash.

    Raises:
        UsageError: torchvision has no weights of this name.
        MachineError: they are not on this machine and may not be, or cannot be, fetched.
        CheckpointError: the file is missing, damaged or of another network.
    """
    file = Path(weights) if is_weight_file(weights) else _cached_file(name, weights, download=download)
    state = find_state(read_weight_file(file), file)
    kept: dict[str, Tensor] = {key: tensor for key, tensor in state.items() if key not in _CLASSIFIER_KEYS}
    load_exactly(body, kept, where=str(file), hint=f"give weights of {name}, or the name of the network they are of")


def is_weight_file(weights: str) -> bool:
    """Tell a path from a name of weights."""
    return weights.endswith(WEIGHT_SUFFIXES) or "/" in weights or Path(weights).is_file()


def fetch(url: str, file: Path) -> None:
    """Download a file whose name ends in the start of its SHA-256, as torchvision's do, and check that.

    Raises:
        MachineError: the network or the disk fails, or the hash is wrong.
    """
    hash_prefix = file.stem.rsplit("-", 1)[-1]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=hash_prefix, progress=False)
    except (OSError, RuntimeError) as error:
        raise MachineError(f"cannot download {url}: {error}", where=str(file), hint="check the network") from error


def find_named_weights(name: str, weights: str) -> tuple[Path, str]:
    """Return where named weights are in torch's cache, whether they are there or not, and where they come from.

    Args:
        name: of the network at torchvision.
        weights: torchvision's name of them.

    Raises:
        UsageError: torchvision has no weights of this name.
    """
    known: dict[str, Any] = {}
    if name in torchvision.models.list_models():
        known = dict(torchvision.models.get_model_weights(name).__members__)
    if weights not in known:
        raise UsageError(
            f"there are no weights '{weights}' for {name}",
            where="backbone.weights",
            hint=f"{nearest(weights, known)} or give a file" if known else "give a file, or null to train from scratch",
        )
    url: str = known[weights].url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1], url


def _cached_file(name: str, weights: str, *, download: bool) -> Path:
    """Return the file of named weights in torch's cache."""
    file, url = find_named_weights(name, weights)
    if not file.is_file():
        if not download:
            raise MachineError(
                f"the weights {weights} of {name} are not on this machine (looked for {file})",
                where="backbone.weights",
                hint=f"--download fetches {url}; or name a file (--backbone-weights FILE), or train from scratch "
                "(--backbone-weights none)",
            )
        fetch(url, file)
    return file

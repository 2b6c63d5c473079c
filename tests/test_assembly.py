"""Configurations become models: the same for the same seed, and found again in their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.annotations.records import Category
from core.assembly import assemble, load_detector
from core.config.schema import Config
from core.errors import CheckpointError
from core.models.specs import SPECS, get_spec
from core.models.weights import pack_weights

CLASSES = (Category(3, "bird"), Category(7, "cat"))


def _config(name: str = "dela-detr", **run: Any) -> Config:
    settings = get_spec(name).config_defaults()
    settings["model"] |= {"hidden_dim": 32, "num_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 2}
    settings["model"] |= {"feedforward_dim": 32, "num_queries": 5}
    return Config.model_validate(settings | {"backbone": {"name": "resnet10", "weights": None}, "run": run})


def test_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = assemble(_config(seed=5), CLASSES).model.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again = assemble(_config(seed=5), CLASSES).model.state_dict()
    other = assemble(_config(seed=6), CLASSES).model.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["query_embed.weight"], other["query_embed.weight"])


@pytest.mark.parametrize("name", SPECS)
def test_a_file_of_ours_describes_its_detector(tmp_path: Path, name: str) -> None:
    assembly = assemble(_config(name), CLASSES)
    torch.save(pack_weights(assembly.model.state_dict(), assembly.config.model_dump(), CLASSES), tmp_path / "model.pt")
    loaded = load_detector(tmp_path / "model.pt")
    assert loaded.assembly.classes == CLASSES
    assert loaded.assembly.config == assembly.config
    assert not loaded.is_reference
    ours, theirs = assembly.model.state_dict(), loaded.assembly.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_tensors_alone_are_no_detector(tmp_path: Path) -> None:
    torch.save(assemble(_config(), CLASSES).model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="weights alone"):
        load_detector(tmp_path / "bare.pth")


def test_a_configuration_of_another_time_is_named(tmp_path: Path) -> None:
    assembly = assemble(_config(), CLASSES)
    config = assembly.config.model_dump() | {"model": {"nam": "detr"}}
    torch.save(pack_weights(assembly.model.state_dict(), config, CLASSES), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.nam"):
        load_detector(tmp_path / "model.pt")

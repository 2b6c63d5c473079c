"""`data.cache`: what is kept of which split, and that no weight depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.datasets.image_cache import ImageCache
from core.torchrun import VARIABLES, num_processes_here
from core.trainer.inputs import cache_images
from core.trainer.reporter import CheckpointSaved, NullReporter
from core.trainer.run_folder import RunFolder
from core.trainer.train import train
from tests.trainer.tiny import IDENTITY, tiny_assembly, tiny_config, tiny_datasets


def notes_of(folder: Path, num_free_bytes: int, num_processes: int = 1) -> tuple[list[str], list[bool]]:
    """Return what is said, and whether images of the train and the val split would be kept."""
    train_set, validation = tiny_datasets(folder, tiny_assembly(tiny_config()))
    said: list[str] = []
    cache_images(train_set, validation.dataset, num_free_bytes, num_processes, said.append)
    return said, [train_set.cache is not None, validation.dataset.cache is not None]


def test_what_fits_into_half_of_the_free_memory_is_kept(tmp_path: Path) -> None:
    train_set, _ = tiny_datasets(tmp_path, tiny_assembly(tiny_config()))
    size = ImageCache(train_set.images).num_bytes
    assert notes_of(tmp_path, 4 * size)[1] == [True, True]
    said, kept = notes_of(tmp_path, 4 * size - 1)
    assert kept == [True, False]
    assert "train: decoded images are kept" in said[0]
    assert "val: decoded images are not kept in memory: they would take" in said[1]
    assert notes_of(tmp_path, 2 * size - 1)[1] == [False, False]
    assert notes_of(tmp_path, 8 * size, num_processes=2)[1] == [True, True]
    said, kept = notes_of(tmp_path, 8 * size - 1, num_processes=2)
    assert kept == [True, False]
    assert "2 processes" in said[0]
    assert notes_of(tmp_path, 0)[1] == [False, False]


def test_processes_of_other_machines_do_not_count() -> None:
    torchrun = dict.fromkeys(VARIABLES, "1")
    assert num_processes_here(8, {**torchrun, "LOCAL_WORLD_SIZE": "4"}) == 4
    assert num_processes_here(8, torchrun) == 8
    assert num_processes_here(2, {"LOCAL_WORLD_SIZE": "1"}) == 2  # left over, no run of torchrun's


class _EndsAfterOneEpoch(NullReporter):
    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        raise KeyError("enough")


def test_a_run_resumed_without_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Also without --override: the setting changes nothing."""

    def run(folder: Path, *, cached: bool, resume: bool = False, reporter: NullReporter | None = None) -> None:
        config = tiny_config(schedule={"epochs": 2}, data={"cache": cached})
        assembly = tiny_assembly(config)
        train_set, validation = tiny_datasets(tmp_path / "images", assembly)
        if cached:
            cache_images(train_set, validation.dataset, 1 << 40, 1, lambda _: None)
        opened = RunFolder.reopen(folder) if resume else RunFolder.create(folder, "dela-detr")
        with opened as run_folder:
            device = torch.device("cpu")
            train(assembly, train_set, validation, run_folder, device, IDENTITY, resume=resume, reporter=reporter)

    run(tmp_path / "whole", cached=False)
    with pytest.raises(KeyError, match="enough"):
        run(tmp_path / "parts", cached=True, reporter=_EndsAfterOneEpoch())
    run(tmp_path / "parts", cached=False, resume=True)
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last" / "model.pt", weights_only=True)["model"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

"""How often the host waits for the device in a step: while it waits, it prepares nothing, and the device runs dry."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.datasets.batches import Batch, collate
from core.device import place
from core.processes import ALONE
from core.trainer.step import StepNumbers, Stepper
from tests.trainer.tiny import tiny_assembly, tiny_config, tiny_datasets
from tests.trainer.watched_device import DEVICE, WatchedDevice

CPU = torch.device("cpu")
TO_HOST = "aten._to_copy.default"

VARIANTS: dict[str, dict[str, Any]] = {
    "dela-detr, averaged weights": {"optimizer": {"ema_decay": 0.9}},
    "dela-conddetr, two stages": {
        "model": {"name": "dela-conddetr"},
        "label_augmentation": {"repeat_ratio": None, "repeat_time": 2, "two_stage_match": True},
        "backbone": {"norm": "frozen_batch_norm"},
    },
    "scaled gradients": {"run": {"precision": "float16"}},
}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedDevice]:
    # PyTorch has no autocast for this device. In float32 it would do nothing, and what scales the loss of float16
    # scales any loss.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr("core.trainer.precision._check_device", lambda *_: None)
    with WatchedDevice() as device:
        yield device


def make_stepper(folder: Path, device: torch.device, sections: dict[str, Any]) -> tuple[Stepper, list[Batch]]:
    """Return what makes a step without dropout, and the two parts of its batch; the third image has no box."""
    sections = {**sections, "model": {"dropout": 0.0, **sections.get("model", {})}}
    assembly = tiny_assembly(tiny_config(**sections))
    dataset, _ = tiny_datasets(folder / "images", assembly, num_images=4)
    parts = [collate([dataset[(0, index)] for index in indices]) for indices in ((0, 1, 3), (2,))]
    place(assembly.model, device)
    stepper = Stepper(assembly, device, folder / "diverged", ALONE)
    stepper.train()
    return stepper, parts


def make_steps(stepper: Stepper, parts: list[Batch], count: int = 2) -> list[StepNumbers]:
    return [stepper.step(parts, step, epoch=0, num_steps=9) for step in range(count)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_host_waits_to_match_each_part_and_once_more(variant: str, tmp_path: Path, watched: WatchedDevice) -> None:
    stepper, parts = make_stepper(tmp_path, DEVICE, VARIANTS[variant])
    watched.waits.clear()
    numbers = make_steps(stepper, parts)
    assert watched.waits == [TO_HOST] * 2 * (len(parts) + 1)

    expected = make_steps(*make_stepper(tmp_path, CPU, VARIANTS[variant]))
    for ours, theirs in zip(numbers, expected, strict=True):
        assert ours.terms == pytest.approx(theirs.terms, rel=1e-4)
        assert (ours.loss, ours.grad_norm) == pytest.approx((theirs.loss, theirs.grad_norm), rel=1e-4)


def test_one_more_wait_is_seen(tmp_path: Path, watched: WatchedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.trainer import step

    clip_gradients = step.clip_gradients

    def impatient(*arguments: Any) -> Tensor:
        norm = clip_gradients(*arguments)
        norm.item()
        return norm

    monkeypatch.setattr(step, "clip_gradients", impatient)
    stepper, parts = make_stepper(tmp_path, DEVICE, {})
    watched.waits.clear()
    make_steps(stepper, parts[:1], count=1)
    assert watched.waits == [TO_HOST, "aten._local_scalar_dense.default", TO_HOST]


@pytest.mark.parametrize(
    ("wait", "count"),
    [
        (lambda values: values.cpu(), 1),
        (lambda values: float(values[0]), 1),
        (lambda values: bool((values > 1).any()), 1),
        (lambda values: values[values > 1], 1),
        (lambda values: values.nonzero(), 1),
        (lambda values: values[torch.tensor([0, 2])], 1),
        (lambda values: values.unique(), 1),
        (lambda values: torch.zeros(2).to(values.device), 1),
        (lambda values: values.copy_(torch.zeros(3)), 1),
        (lambda values: torch.zeros(3).copy_(values), 1),
        (lambda values: torch.zeros(2).to(values.device, non_blocking=True), 0),
        (lambda values: values[torch.arange(2, device=values.device)], 0),
        (lambda values: values.masked_fill(values > 1, 0).sum().sqrt_(), 0),
    ],
)
def test_what_counts_as_waiting(wait: Callable[[Tensor], Any], count: int, watched: WatchedDevice) -> None:
    values = torch.arange(3.0, device=DEVICE)
    wait(values)
    assert len(watched.waits) == count


def test_tensors_made_of_numbers_are_refused(watched: WatchedDevice) -> None:
    with pytest.raises(AssertionError, match="out of numbers"):
        torch.tensor([1, 2], device=DEVICE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", VARIANTS)
def test_cuda_itself_sees_no_other_waits(variant: str, tmp_path: Path) -> None:
    """It has not run on a GPU yet."""
    stepper, parts = make_stepper(tmp_path, torch.device("cuda"), VARIANTS[variant])
    make_steps(stepper, parts)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_steps(stepper, parts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [each for each in caught if "synchronizing CUDA operation" in str(each.message)]
    assert len(waits) == 2 * (len(parts) + 1)

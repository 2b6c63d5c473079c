"""A step that diverged is made again from its file alone, and what breaks is named."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import core
from core.datasets.batches import Batch
from core.errors import CheckpointError, DivergedError
from core.processes import ALONE
from core.trainer.diverged import DivergedStep, read_diverged_step
from core.trainer.replay import replay
from core.trainer.step import Stepper
from tests.trainer.test_divergence import CPU, make_stepper
from tests.trainer.tiny import tiny_config

OVERFLOWS = {"class_weight": 3e37}
"""Of the loss: the sum is finite, and its gradients are not."""


def diverged(
    folder: Path, change: Callable[[Stepper, list[Batch]], None] | None = None, **sections: Any
) -> tuple[DivergedStep, DivergedError]:
    """Let the second step of a model diverge by itself; images 100, 101 and 102 are its batch."""
    stepper, parts = make_stepper(folder, ALONE, tiny_config(**sections), [(0, 1, 2)])
    stepper.step(parts, step=0, epoch=0, num_steps=9) if "loss" not in sections else None
    if change:
        change(stepper, parts)
    with pytest.raises(DivergedError) as stopped:
        stepper.step(parts, step=1, epoch=0, num_steps=9)
    return read_diverged_step(folder / "diverged" / "step-00000002.pt"), stopped.value


def damage_a_box(_stepper: Stepper, parts: list[Batch]) -> None:
    parts[0].targets[1].boxes_cxcywh_norm[0] = torch.nan


def test_a_damaged_box_is_found_to_be_of_one_image(tmp_path: Path) -> None:
    kept, error = diverged(tmp_path, damage_a_box)
    report = replay(kept, kept.config, CPU)
    (part,) = report.parts
    assert report.diverges
    assert part.fault is not None
    assert part.fault in error.message
    assert "matching cost" in part.fault
    assert part.losses == {}
    assert report.grad_norm is None
    assert part.extents["annotated boxes"].num_not_finite == 4
    assert [name for name, extent in part.extents.items() if extent.num_not_finite] == ["annotated boxes"]
    assert part.sighting.output is None
    assert [(image.image_id, image.fault is not None) for image in part.images] == [
        (100, False), (101, True), (102, False),
    ]  # fmt: skip
    assert all(image.losses["loss"] > 0 for image in part.images if image.fault is None)
    again = report.error()
    assert again is not None
    assert again.exit_code == 6
    assert f"image id 101, {part.images[1].file_name}" in (again.hint or "")


def test_the_first_module_to_blame_is_named(tmp_path: Path) -> None:
    def damage_a_layer(stepper: Stepper, _parts: list[Batch]) -> None:
        with torch.no_grad():
            stepper.model.get_parameter("encoder.layers.0.linear1.weight").fill_(3e38)

    kept, _ = diverged(tmp_path, damage_a_layer)
    report = replay(kept, kept.config, CPU)
    assert report.parts[0].sighting.output == "encoder.layers.0.linear1 (Linear)"
    assert report.parts[0].sighting.was_input_finite
    assert report.weights.largest_in == "encoder.layers.0.linear1.weight"
    assert report.weights.largest == pytest.approx(3e38)
    assert report.weights.not_finite == ()


def test_weights_that_were_not_finite_before_are_named(tmp_path: Path) -> None:
    def damage_a_weight(stepper: Stepper, _parts: list[Batch]) -> None:
        with torch.no_grad():
            stepper.model.query_embed.weight[0, 0] = torch.nan

    kept, _ = diverged(tmp_path, damage_a_weight)
    report = replay(kept, kept.config, CPU)
    assert report.weights.not_finite == ("query_embed.weight",)
    assert "earlier checkpoint" in (getattr(report.error(), "hint", None) or "")


def test_a_loss_comes_out_the_same_to_the_last_bit(tmp_path: Path) -> None:
    kept, error = diverged(tmp_path, loss={"class_weight": 3e38})
    assert "the total is inf" in error.message
    report = replay(kept, kept.config, CPU)
    (part,) = report.parts
    assert report.diverges
    assert part.fault == "the total is inf"
    assert part.is_identical
    assert part.losses["loss"] == float("inf")
    assert 0 < part.losses["loss_ce"] < 100


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_that_are_not_finite_are_traced_back(precision: str, tmp_path: Path) -> None:
    kept, error = diverged(tmp_path, run={"precision": precision}, loss=OVERFLOWS)
    state = torch.get_rng_state()
    report = replay(kept, kept.config, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    (part,) = report.parts
    assert report.diverges
    assert "the norm of the gradients is " in error.message
    assert part.gradients.not_finite[0] in error.message
    assert part.is_identical
    assert part.grad_norm is not None
    assert part.sighting.output is None
    file, _, line = (part.sighting.operation or "").partition(" of ")[2].partition(":")
    assert (Path(core.__file__).parent.parent / file).is_file()
    assert int(line.split()[0]) > 0
    # It can tell: another step drops and repeats other values, another place drops others.
    for other in (replace(kept, step=2), replace(kept, parts=(replace(kept.parts[0], place=1),))):
        assert replay(other, other.config, CPU).parts[0].is_identical is False


def test_a_norm_too_large_for_its_type_is_one_that_is_not_finite(tmp_path: Path) -> None:
    kept, error = diverged(tmp_path, model={"name": "conddetr"}, loss={"class_weight": 1e25})
    assert "the norm of the gradients is inf at step" in error.message
    (part,) = replay(kept, kept.config, CPU).parts
    assert part.fault == "the norm of the gradients is inf"
    assert part.is_identical
    assert part.gradients.not_finite == ()
    assert 1e20 < (part.gradients.largest or 0) < 1e30


def test_another_implementation_says_nothing_of_the_run_s_own_numbers(tmp_path: Path) -> None:
    kept, _ = diverged(tmp_path, loss=OVERFLOWS)
    plain = kept.config.model_copy(update={"model": kept.config.model.model_copy(update={"attention": "plain"})})
    (part,) = replay(kept, plain, CPU).parts
    assert part.is_identical is None
    assert part.losses == pytest.approx(dict(kept.parts[0].losses), rel=1e-3)


def test_the_file_holds_everything_once(tmp_path: Path) -> None:
    kept, _ = diverged(tmp_path, damage_a_box)
    (file,) = (tmp_path / "diverged").iterdir()
    assert file.name == "step-00000002.pt"
    tensors = [*kept.weights.state.values(), kept.parts[0].batch.pixels]
    assert file.stat().st_size < sum(tensor.nbytes for tensor in tensors) + 100_000


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_files_of_another_kind_are_refused_in_one_line(tmp_path: Path) -> None:
    diverged(tmp_path, damage_a_box)
    whole = tmp_path / "diverged" / "step-00000002.pt"
    content = torch.load(whole, weights_only=True)
    section = content["diverged_step"]

    def refused(change: Callable[[Path], Any]) -> str:
        file = tmp_path / "file.pt"
        shutil.copy(whole, file)
        change(file)
        with pytest.raises(CheckpointError) as error:
            read_diverged_step(file)
        assert error.value.exit_code == 4
        assert error.value.hint
        assert str(file) in str(error.value)
        assert "\n" not in error.value.message
        return error.value.message

    def saved(value: Any) -> Callable[[Path], Any]:
        return lambda file: torch.save(value, file)

    assert "no such" in refused(Path.unlink)
    assert "damaged" in refused(lambda file: os.truncate(file, 5000))
    assert "damaged" in refused(lambda file: file.write_bytes(flipped(file.read_bytes())))
    assert "holds no step to make again" in refused(saved(without(content, "diverged_step")))
    assert "holds no step to make again" in refused(saved(content["model"]))
    assert "format 99" in refused(saved(content | {"format_version": 99}))
    assert "damaged" in refused(saved(content | {"diverged_step": [1, 2]}))
    for key in section:
        assert "damaged" in refused(saved(content | {"diverged_step": without(section, key)}))
    for key in section.keys() - {"reason", "device"}:
        assert "damaged" in refused(saved(content | {"diverged_step": {**section, key: "a text"}}))
    (part,) = section["parts"]
    for key, value in {"labels": part["labels"][:1], "pixels": part["pixels"].float(), "image_ids": [1]}.items():
        wrong = {**section, "parts": [{**part, key: value}]}
        assert "damaged" in refused(saved(content | {"diverged_step": wrong}))

    canary = tmp_path / "canary"
    packed = io.BytesIO()
    torch.save({"format": "dedetr", "diverged_step": _Canary(canary)}, packed, pickle_module=pickle)
    assert "refused" in refused(lambda file: file.write_bytes(packed.getvalue()))
    assert not canary.exists()


def flipped(data: bytes) -> bytes:
    """Change one bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}

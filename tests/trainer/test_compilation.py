from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.config.schema import LabelAugmentationConfig, LossConfig
from core.losses.criterion import Criterion
from core.models.detector import Detector
from core.structures import ImageBatch
from core.trainer.compilation import compile_model, compiled_code_unused
from core.trainer.device import reproducible
from core.trainer.weight_average import WeightAverage
from tests.losses.samples import random_targets
from tests.models.test_detector import random_batch, small_detector


def in_float64(*sizes_hw: tuple[int, int]) -> ImageBatch:
    batch = random_batch(*sizes_hw)
    return replace(batch, pixels=batch.pixels.double())


TARGETS = random_targets([3, 2], seed=0)
BATCHES = [in_float64(*sizes) for sizes in (((64, 80), (50, 40)), ((96, 64), (70, 60)))]

_COMPILE = """
from core.errors import MachineError
from core.trainer.compilation import compile_model
from tests.models.test_detector import small_detector
try:
    compile_model(small_detector("detr"))
except MachineError as error:
    print(error.exit_code, error, error.hint)
"""


def loss_of(detector: Detector, batch: ImageBatch) -> torch.Tensor:
    criterion = Criterion(LossConfig(), LabelAugmentationConfig(), detector.spec.family, 3)
    return criterion(detector(batch), TARGETS).total


def test_machine_without_a_compiler_is_named(tmp_path: Path) -> None:
    environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("5 run.compile: torch.compile does not work on this machine")
    assert "run.compile=false" in found.stdout


@pytest.mark.slow
def test_compiled_model_trains_with_dropout_on_all_image_sizes() -> None:
    compiled = small_detector("dela-detr", dropout=0.1).double().train()
    compile_model(compiled)
    for batch in (*BATCHES, in_float64((80, 112), (80, 112))):
        loss = loss_of(compiled, batch)
        loss.backward()
        assert loss.isfinite()
    for name, parameter in compiled.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


@pytest.mark.slow
def test_compiled_model_gives_the_same_losses_and_gradients_for_all_image_sizes() -> None:
    with reproducible(torch.device("cpu")):
        # In float64: where a float32 network lies at a kink, its last bit decides on percents of a gradient.
        plain = small_detector("dela-detr", dropout=0.0).double().train()
        compiled = copy.deepcopy(plain)
        compile_model(compiled)
        assert compiled.state_dict().keys() == plain.state_dict().keys()
        for batch in BATCHES:
            expected, found = loss_of(plain, batch), loss_of(compiled, batch)
            assert found.item() == pytest.approx(expected.item(), rel=1e-9)
            expected.backward()
            found.backward()
        for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            assert (other.grad - one.grad).norm() < 1e-9 * (one.grad.norm() + 1e-3), name
        for (name, one), other in zip(plain.named_buffers(), compiled.buffers(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9, msg=name)

        compiled.load_state_dict(plain.state_dict())
        with torch.no_grad():
            expected_logits = plain.eval()(BATCHES[0]).logits
            assert torch.equal(WeightAverage(compiled, 0.5).model(BATCHES[0]).logits, expected_logits)
            with compiled_code_unused():
                assert torch.equal(compiled.eval()(BATCHES[0]).logits, expected_logits)

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from core.config.schema import OptimizerConfig
from core.models.detector import Detector
from core.trainer.optimizer import build_optimizer
from core.trainer.weight_average import WeightAverage
from tests.models.test_detector import random_batch
from tests.trainer.tiny import tiny_assembly, tiny_config

DECAY = 0.5


def tiny_model() -> Detector:
    return tiny_assembly(tiny_config()).model.train()


def train_a_little(model: Detector, average: WeightAverage, steps: range) -> None:
    """Make steps of noise, each from its number alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            model.backbone(torch.randn(2, 3, 32, 32, generator=generator))
        average.update(step)


def saved_and_read(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


def test_average_is_the_recurrence_with_a_decay_that_warms_up() -> None:
    model = tiny_model()
    average = WeightAverage(model, DECAY)
    key, statistic = "query_embed.weight", "backbone.body.bn1.running_mean"
    expected = {name: model.state_dict()[name].double() for name in (key, statistic)}
    for step in range(14):
        train_a_little(model, average, range(step, step + 1))
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, value in expected.items():
            expected[name] = decay * value + (1 - decay) * model.state_dict()[name].double()
    state = average.model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), value, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(state[name], model.state_dict()[name], atol=1e-3)
    counter = "backbone.body.bn1.num_batches_tracked"
    assert state[counter] == model.state_dict()[counter] == 14


def test_averaged_model_is_a_detector_of_its_own_that_only_evaluates() -> None:
    model = tiny_model()
    average = WeightAverage(model, DECAY)
    assert average.model.state_dict().keys() == model.state_dict().keys()
    pointers = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not any(tensor.data_ptr() in pointers for tensor in average.model.state_dict().values())
    assert not any(module.training for module in average.model.modules())
    assert model.training
    average.model(random_batch((64, 64))).logits.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    before = [parameter.clone() for parameter in model.parameters()]
    average.update(0)
    assert all(torch.equal(left, right) for left, right in zip(before, model.parameters(), strict=True))


def test_resumed_average_has_the_same_bits() -> None:
    model = tiny_model()
    average = WeightAverage(model, DECAY)
    train_a_little(model, average, range(3))
    kept = saved_and_read({"model": model.state_dict(), "average": average.state_dict()})
    train_a_little(model, average, range(3, 6))

    again = tiny_model()
    resumed = WeightAverage(again, DECAY)
    again.load_state_dict(kept["model"])
    resumed.load_state_dict(kept["average"])
    train_a_little(again, resumed, range(3, 6))
    state = average.model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in resumed.model.state_dict().items())


def test_frozen_parts_stay_the_same_to_the_bit() -> None:
    model = tiny_model()
    build_optimizer(model, OptimizerConfig(freeze=["backbone.*"]))
    average = WeightAverage(model.train(), 0.3)
    before = {key: tensor.clone() for key, tensor in model.backbone.state_dict().items()}
    for step in range(9):
        average.update(step)
    assert all(torch.equal(tensor, before[key]) for key, tensor in average.model.backbone.state_dict().items())


def test_state_of_another_model_is_refused() -> None:
    average = WeightAverage(tiny_model(), DECAY)
    with pytest.raises(RuntimeError):
        average.load_state_dict({"model": nn.Linear(2, 2).state_dict()})
    with pytest.raises(KeyError):
        average.load_state_dict({})

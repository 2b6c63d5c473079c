from __future__ import annotations

import pytest
import torch

from core.config.schema import OptimizerConfig, ScheduleConfig
from core.errors import CheckpointError
from core.trainer.optimizer import (
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    load_optimizer_state,
    set_learning_rates,
)
from tests.trainer.tiny import tiny_assembly, tiny_config


def names_of(model: torch.nn.Module, group: dict[str, object]) -> set[str]:
    wanted = {id(parameter) for parameter in group["params"]}  # type: ignore[attr-defined]
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


def test_backbone_and_the_rest_have_their_own_rates_and_the_same_decay() -> None:
    model = tiny_assembly(tiny_config()).model
    config = OptimizerConfig(lr=1e-3, backbone_lr=1e-5, weight_decay=0.02)
    optimizer = build_optimizer(model, config)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert names_of(model, groups["backbone"]) == {n for n, _ in model.named_parameters() if n.startswith("backbone.")}
    assert names_of(model, groups["model"]) == {n for n, _ in model.named_parameters() if not n.startswith("backbone.")}
    assert (groups["model"]["lr"], groups["backbone"]["lr"]) == (1e-3, 1e-5)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02}
    assert set_learning_rates(optimizer, config, 0.1) == pytest.approx(1e-4)
    assert groups["backbone"]["lr"] == pytest.approx(1e-6)


def test_backbone_rate_0_freezes_weights_and_statistics() -> None:
    model = tiny_assembly(tiny_config()).model
    optimizer = build_optimizer(model, OptimizerConfig(backbone_lr=0.0))
    assert [group["name"] for group in optimizer.param_groups] == ["model"]
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model.train()
    model.backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())


def test_frozen_stem_is_left_out() -> None:
    model = tiny_assembly(tiny_config(backbone={"freeze_stem": True})).model
    optimizer = build_optimizer(model, OptimizerConfig())
    trained = set.union(*(names_of(model, group) for group in optimizer.param_groups))
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("backbone.") for name in trained)
    assert len(trained) < len(list(model.parameters()))


def test_parameter_without_gradient_stays_as_it_is() -> None:
    model = tiny_assembly(tiny_config()).model
    optimizer = build_optimizer(model, OptimizerConfig())
    model.query_embed.weight.sum().backward()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert clip_gradients(model.parameters(), 0.1).isfinite()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"query_embed.weight"}


@pytest.mark.parametrize(
    ("step", "epoch", "factor"),
    [(0, 0, 0.25), (1, 0, 0.5), (3, 0, 1.0), (4, 0, 1.0), (100, 9, 1.0), (100, 10, 0.1), (999, 50, 0.1), (1, 10, 0.05)],
)
def test_warm_up_by_steps_and_one_drop_by_epoch(step: int, epoch: int, factor: float) -> None:
    schedule = ScheduleConfig(epochs=60, lr_drop_epoch=10, lr_drop_factor=0.1, warmup_steps=4)
    assert learning_rate_factor(step, epoch, schedule) == pytest.approx(factor)


def test_no_warm_up_and_no_drop() -> None:
    schedule = ScheduleConfig(epochs=60, lr_drop_epoch=None)
    assert [learning_rate_factor(step, step, schedule) for step in (0, 30, 59)] == [1.0, 1.0, 1.0]


def test_clipping_scales_all_gradients_together() -> None:
    parameters = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True), torch.zeros(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 0.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(parameters[1].grad, torch.tensor([4.0]))
    assert clip_gradients(parameters, 10.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(parameters[1].grad, torch.tensor([4.0]))
    assert clip_gradients(parameters, 0.5).item() == pytest.approx(5.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.4]))


def test_state_of_other_parameters_is_refused_and_new_decay_is_kept() -> None:
    assembly = tiny_assembly(tiny_config())
    state = build_optimizer(assembly.model, OptimizerConfig(weight_decay=0.5)).state_dict()
    config = OptimizerConfig(weight_decay=0.25)
    optimizer = build_optimizer(assembly.model, config)
    load_optimizer_state(optimizer, state, config)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25}
    frozen = OptimizerConfig(backbone_lr=0.0)
    with pytest.raises(CheckpointError, match="other parameters"):
        load_optimizer_state(build_optimizer(assembly.model, frozen), state, frozen)

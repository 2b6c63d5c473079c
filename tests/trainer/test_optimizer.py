from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from core.config.schema import OptimizerConfig, ScheduleConfig
from core.device import place
from core.errors import CheckpointError, UsageError
from core.trainer.optimizer import (
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    load_optimizer_state,
    set_learning_rates,
)
from tests.models.test_detector import random_batch
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


def test_frozen_by_name_stays_as_it_is_and_is_left_out() -> None:
    model = tiny_assembly(tiny_config()).model
    patterns = ["encoder.*", "backbone.body.layer?.0.bn*", "decoder.layers.0.norm1.bias"]
    optimizer = build_optimizer(model, OptimizerConfig(freeze=patterns, weight_decay=0.1))
    trained = set.union(*(names_of(model, group) for group in optimizer.param_groups))
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert frozen == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"encoder", "backbone", "decoder"}
    assert {name for name in frozen if name.startswith("decoder.")} == {"decoder.layers.0.norm1.bias"}
    assert not {name for name in frozen if name.startswith("backbone.") and ".bn" not in name}

    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.eval().train()
    output = model(random_batch((64, 64), (48, 64)))
    (output.logits.square().sum() + output.boxes_cxcywh_norm.sum()).backward()
    optimizer.step()
    after = model.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert not changed & frozen
    assert {"backbone.body.bn1.running_mean", "decoder.layers.0.norm1.weight", "query_embed.weight"} <= changed
    assert not {key for key in changed if key.startswith("backbone.body.layer1.0.bn1.")}
    assert not model.encoder.training
    assert not any(module.training for module in model.encoder.modules())
    assert model.decoder.layers[0].training


def test_pattern_that_names_nothing_is_refused_with_the_nearest_name() -> None:
    model = tiny_assembly(tiny_config()).model
    for pattern, hint in {
        "encodr.*": "'encoder.*'",
        "decoder.layer.1.*": "'decoder.layers.1.*'",
        "": "query_embed.*",
    }.items():
        with pytest.raises(UsageError) as refused:
            build_optimizer(model, OptimizerConfig(freeze=["encoder.*", pattern]))
        assert f"'{pattern}'" in refused.value.message
        assert refused.value.where == "optimizer.freeze"
        assert hint in str(refused.value.hint)


def test_something_must_be_left_to_train() -> None:
    for config in (OptimizerConfig(freeze=["*"]), OptimizerConfig(freeze=["[!b]*"], backbone_lr=0.0)):
        with pytest.raises(UsageError, match="nothing is left to train"):
            build_optimizer(tiny_assembly(tiny_config()).model, config)


@pytest.mark.parametrize(
    ("step", "epoch", "factor"),
    [(0, 0, 0.25), (1, 0, 0.5), (3, 0, 1.0), (4, 0, 1.0), (100, 9, 1.0), (100, 10, 0.1), (999, 50, 0.1), (1, 10, 0.05)],
)
def test_warm_up_by_steps_and_one_drop_by_epoch(step: int, epoch: int, factor: float) -> None:
    schedule = ScheduleConfig(epochs=60, lr_drop_epoch=10, lr_drop_factor=0.1, warmup_steps=4)
    assert learning_rate_factor(step, epoch, schedule, 1000) == pytest.approx(factor)


def test_drop_by_step_wins_over_the_drop_by_epoch() -> None:
    schedule = ScheduleConfig(lr_drop_epoch=1, lr_drop_step=30, lr_drop_factor=0.5)
    assert [learning_rate_factor(step, 20, schedule, 60) for step in (0, 29, 30, 59)] == [1.0, 1.0, 0.5, 0.5]
    at_once = ScheduleConfig(lr_drop_epoch=1, lr_drop_step=0, lr_drop_factor=0.5)
    assert learning_rate_factor(0, 0, at_once, 60) == 0.5


def test_constant_and_no_drop() -> None:
    for schedule in (ScheduleConfig(lr_drop_epoch=None), ScheduleConfig(kind="constant", lr_drop_epoch=1)):
        assert [learning_rate_factor(step, step, schedule, 60) for step in (0, 30, 59)] == [1.0, 1.0, 1.0]
    warming = ScheduleConfig(kind="constant", warmup_steps=2)
    assert [learning_rate_factor(step, 0, warming, 60) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_falls_from_the_end_of_the_warm_up_to_the_last_step(warmup_steps: int, final: float) -> None:
    schedule = ScheduleConfig(kind="cosine", warmup_steps=warmup_steps, final_lr_factor=final, lr_drop_epoch=0)
    factors = [learning_rate_factor(step, 7, schedule, 105) for step in range(105)]
    first = max(warmup_steps - 1, 0)
    assert factors[: first + 1] == pytest.approx([(step + 1) / max(warmup_steps, 1) for step in range(first + 1)])
    assert factors[-1] == pytest.approx(final)
    assert all(left > right for left, right in pairwise(factors[first:]))
    middle = (104 + first) // 2
    if (104 + first) % 2 == 0:
        assert factors[middle] == pytest.approx((1 + final) / 2)
    assert factors[middle - 1] - factors[middle] > 5 * (factors[first] - factors[first + 1])
    assert learning_rate_factor(0, 0, schedule.model_copy(update={"warmup_steps": 0}), 1) == 1.0


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


def test_moments_of_other_kernels_are_gone_on_with_in_ours() -> None:
    """A run of a machine whose weights are updated one by one, say, and lie in memory otherwise."""
    config = OptimizerConfig(lr=1e-2, backbone_lr=1e-2)
    model, other = (tiny_assembly(tiny_config()).model for _ in range(2))
    place(model, torch.device("cpu"))
    fused, plain = build_optimizer(model, config), torch.optim.AdamW(build_optimizer(other, config).param_groups)
    for group in plain.param_groups:
        group["fused"] = group["foreach"] = False
    optimizers = {"fused": fused, "plain": plain}

    def step(number: int, *names: str) -> None:
        for name in names:
            for group in optimizers[name].param_groups:
                for index, parameter in enumerate(group["params"]):
                    gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number + index))
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizers[name].step()

    step(0, "plain")
    model.load_state_dict(other.state_dict())
    load_optimizer_state(fused, copy.deepcopy(plain.state_dict()), config)
    assert all(group["fused"] for group in fused.param_groups)
    step(1000, "plain", "fused")
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch_norm", "frozen_batch_norm"])
def test_gradients_lie_in_memory_as_their_weights_do(norm: str) -> None:
    """Fused kernels rely on it: with other strides they would update the wrong weights, and say nothing."""
    model = tiny_assembly(tiny_config(backbone={"norm": norm})).model
    place(model, torch.device("cpu"))
    assert any(not parameter.is_contiguous() for parameter in model.parameters())
    for _ in range(2):
        output = model(random_batch((64, 64), (48, 64)))
        (output.logits.square().sum() + output.boxes_cxcywh_norm.sum()).backward()
        assert all(parameter.grad.stride() == parameter.stride() for parameter in model.parameters())

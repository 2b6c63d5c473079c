"""What trains and how fast: AdamW with one learning rate for the backbone and one for the rest, and their schedule."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from core.config.schema import OptimizerConfig, ScheduleConfig
from core.errors import CheckpointError, UsageError, nearest
from core.models.detector import Detector
from core.models.freezing import untrained_parts

_BACKBONE = "backbone.*"
_FUSED = ("cpu", "cuda")
"""Devices on which one kernel updates many weights and moments: on a CPU in a third of the time."""


def build_optimizer(model: Detector, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over all parameters that train, in the groups `model` and `backbone` (DETR, section 4).

    Weight decay is the same for all of them, as in the reference. What `freeze` names, and a backbone with a
    learning rate of 0, is frozen (see `freeze_parameters`) and left out.

    Args:
        model: on its device.
        config: learning rates, weight decay and what to freeze.

    Raises:
        UsageError: a pattern of `freeze` names no parameter, or no parameter is left to train.
    """
    patterns = [*config.freeze, _BACKBONE] if config.backbone_lr == 0 else config.freeze
    freeze_parameters(model, patterns)
    of_backbone = {id(parameter) for parameter in model.backbone.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError(
            f"{', '.join(patterns)} freezes all parameters, so that nothing is left to train",
            where="optimizer.freeze",
            hint="freeze fewer of them, as with --set 'optimizer.freeze=[backbone.*]'",
        )
    groups: list[dict[str, Any]] = [
        {"name": "model", "params": [p for p in trained if id(p) not in of_backbone], "lr": config.lr},
        {"name": "backbone", "params": [p for p in trained if id(p) in of_backbone], "lr": config.backbone_lr},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        weight_decay=config.weight_decay,
        fused=True if trained[0].device.type in _FUSED else None,
    )


def freeze_parameters(model: Detector, patterns: Sequence[str]) -> None:
    """Freeze parameters by name; parts without any other parameter stay in evaluation mode.

    So such parts keep their statistics, and drop nothing.

    Args:
        model: gets no gradients for these parameters from now on.
        patterns: of parameter names, with `*`, `?` and `[...]` as in a shell; `*` also stands for dots.

    Raises:
        UsageError: a pattern names no parameter.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        names = [name for name in parameters if fnmatchcase(name, pattern)]
        if not names:
            raise _names_nothing(pattern, parameters)
        for name in names:
            parameters[name].requires_grad_(False)
    if patterns:
        for part in untrained_parts(model):
            model.freeze(part)


def _names_nothing(pattern: str, names: Iterable[str]) -> UsageError:
    groups: dict[str, None] = {}
    for name in names:
        words = name.split(".")
        groups |= {".".join([*words[:count], "*"]): None for count in range(1, len(words))}
    near = difflib.get_close_matches(pattern, groups, n=1)
    return UsageError(
        f"'{pattern}' names no parameter of the model",
        where="optimizer.freeze",
        hint=nearest(pattern, near or [group for group in groups if group.count(".") == 1]),
    )


def learning_rate_factor(step: int, epoch: int, schedule: ScheduleConfig, num_steps: int) -> float:
    """Return what both learning rates are multiplied by.

    Args:
        step: optimizer steps done before this one, over the whole run.
        epoch: epochs done before.
        schedule: linear warm-up by steps, times what its `kind` says.
        num_steps: optimizer steps of the whole run.
    """
    factor = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.kind == "cosine":
        return factor * _cosine(step, schedule, num_steps)
    if schedule.kind == "step" and _is_after_drop(step, epoch, schedule):
        return factor * schedule.lr_drop_factor
    return factor


def _cosine(step: int, schedule: ScheduleConfig, num_steps: int) -> float:
    """Go from 1, at the last step of the warm-up, to `final_lr_factor`, at the last step of the run."""
    first = max(schedule.warmup_steps - 1, 0)
    progress = (step - first) / max(num_steps - 1 - first, 1)
    share = (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
    return schedule.final_lr_factor + (1 - schedule.final_lr_factor) * share


def _is_after_drop(step: int, epoch: int, schedule: ScheduleConfig) -> bool:
    if schedule.lr_drop_step is not None:
        return step >= schedule.lr_drop_step
    return schedule.lr_drop_epoch is not None and epoch >= schedule.lr_drop_epoch


def set_learning_rates(optimizer: torch.optim.Optimizer, config: OptimizerConfig, factor: float) -> float:
    """Set the learning rate of each group to the configured one times `factor`; return that of the model."""
    for group in optimizer.param_groups:
        group["lr"] = factor * (config.backbone_lr if group["name"] == "backbone" else config.lr)
    return config.lr * factor


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients together to a norm of at most `max_norm` (0: leave them), and return their norm before.

    Parameters without a gradient are passed over. A norm that is not finite leaves the gradients unusable: look
    at it before the optimizer steps.

    Returns:
        Scalar: the L2 norm of all gradients together.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in with_gradient if parameter.grad is not None])
    if max_norm > 0:
        clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any], config: OptimizerConfig) -> None:
    """Give an optimizer the moments of a checkpoint, whatever device and kernels they are from.

    Learning rates and weight decay stay the configured ones.

    Raises:
        CheckpointError: the checkpoint trained other parameters (some are frozen in only one of the two, say).
    """
    ours = [(group["name"], len(group["params"])) for group in optimizer.param_groups]
    theirs = [(group.get("name"), len(group["params"])) for group in state["param_groups"]]
    if ours != theirs:
        raise CheckpointError(
            f"the checkpoint's optimizer trains other parameters: {theirs}, here {ours}",
            where="optimizer",
            hint="nothing can be frozen or unfrozen in a run; start a new one with --weights",
        )
    kept = {"weight_decay": config.weight_decay, "fused": optimizer.defaults["fused"]}
    groups = [{**group, **kept} for group in state["param_groups"]]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            # Fused kernels go through memory, whatever the strides: moments must lie there as their weights do.
            moments[name] = torch.empty_like(parameter.detach()).copy_(moments[name])

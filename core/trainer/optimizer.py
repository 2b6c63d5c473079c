"""AdamW with one learning rate for the backbone and one for the rest, their schedule, and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from core.config.schema import OptimizerConfig, ScheduleConfig
from core.errors import CheckpointError
from core.models.detector import Detector


def build_optimizer(model: Detector, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over all parameters that train, in the groups `model` and `backbone` (DETR, section 4).

    Weight decay is the same for all of them, as in the reference. A backbone with a learning rate of 0 is
    frozen, its statistics too, and left out.

    Args:
        model: on its device.
        config: learning rates and weight decay.
    """
    if config.backbone_lr == 0:
        for part in model.backbone.children():
            model.backbone.freeze(part)
    of_backbone = {id(parameter) for parameter in model.backbone.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"name": "model", "params": [p for p in trained if id(p) not in of_backbone], "lr": config.lr},
        {"name": "backbone", "params": [p for p in trained if id(p) in of_backbone], "lr": config.backbone_lr},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=config.weight_decay)


def learning_rate_factor(step: int, epoch: int, schedule: ScheduleConfig) -> float:
    """Return what both learning rates are multiplied by.

    Args:
        step: optimizer steps done before this one, over the whole run.
        epoch: epochs done before this one.
        schedule: linear warm-up by steps, one drop by epoch.
    """
    factor = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.lr_drop_epoch is not None and epoch >= schedule.lr_drop_epoch:
        factor *= schedule.lr_drop_factor
    return factor


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
    """Give an optimizer the moments of a checkpoint; learning rates and weight decay stay the configured ones.

    Raises:
        CheckpointError: the checkpoint trained other parameters (a backbone frozen in only one of the two, say).
    """
    ours = [(group["name"], len(group["params"])) for group in optimizer.param_groups]
    theirs = [(group.get("name"), len(group["params"])) for group in state["param_groups"]]
    if ours != theirs:
        raise CheckpointError(
            f"the checkpoint's optimizer trains other parameters: {theirs}, here {ours}",
            where="optimizer",
            hint="a backbone cannot be frozen or unfrozen in a run; start a new one with --weights",
        )
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        group["weight_decay"] = config.weight_decay

"""The time of each part of a training step, from PyTorch's profiler; what `profile_step.py` prints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from statistics import median
from typing import Any

from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

import published_way
from cases import Case, Machine
from core.ops.roi_table import RoiTable
from core.trainer import step as trainer_step
from core.trainer.step import Stepper
from workload import as_trained, build_batch, build_stepper, time_call

BACKBONE, LEVELS, ENCODER = "backbone", "levels: projections, position embeddings", "encoder"
FIRST_LAYER, CROPPING, SPARSE = "decoder layer 1", "cropping RoI tokens", "sparse attention but for cropping"
LAYERS, HEADS = "decoder layers 2 to L but for sparse attention", "class and box heads"
MATCHING, LOSSES, UPDATE = "matching", "losses", "clipping and AdamW"
REST = "rest (images, decoder loop, gradients put in place)"
PARTS = (BACKBONE, LEVELS, ENCODER, FIRST_LAYER, CROPPING, SPARSE, LAYERS, HEADS, MATCHING, LOSSES, UPDATE, REST)

CROPPERS = {"pool_roi_tokens", "sum_rows", "spread_sums", "crop_tokens"}
"""Functions that crop RoI tokens, forward or backward."""
_LABEL = "part: "
_BACKWARD = "autograd::engine::evaluate_function: "
Times = dict[str, tuple[float, float]]
"""Seconds by part, forward and backward."""


def profile_cases(
    cases: dict[str, Case], machine: Machine, rounds: int
) -> tuple[dict[str, Times], dict[str, list[float]]]:
    """Return the median time of each part, and the seconds of whole steps that were not recorded, by name."""
    label_functions()
    steps = {}
    for name, case in cases.items():
        stepper, batch = build_stepper(case, machine), build_batch(case)
        label_parts(stepper)
        steps[name] = labelled(lambda stepper=stepper, batch=batch: stepper.step([batch], 0, 0, 1000), REST)
    recorded: dict[str, list[Times]] = {name: [] for name in cases}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with as_trained(machine):
        for step in steps.values():
            step()
        for _ in range(rounds):
            for name, step in steps.items():
                seconds[name].append(time_call(step, machine))
                recorded[name].append(profile_step(step, machine))
    medians = {
        name: {part: (median(t[part][0] for t in times), median(t[part][1] for t in times)) for part in PARTS}
        for name, times in recorded.items()
    }
    return medians, seconds


def profile_step(step: Callable[[], Any], machine: Machine) -> Times:
    """Return the time of each part in one step."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (machine.device == "cuda")
    with profile(activities=activities) as profiler:
        step()
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    # Several operations can carry the number of a node; the last one before it is made is the one that makes it.
    makers = {}
    for event in events:
        part, node = innermost(event)
        if event.sequence_nr >= 0 and (node is None or node.sequence_nr != event.sequence_nr):
            makers[event.sequence_nr] = part
    times_us = {part: [0.0, 0.0] for part in PARTS}
    for event in events:
        part, node = innermost(event)
        if part is None and node is not None:
            part = makers.get(node.sequence_nr)
        own = event.self_device_time_total if machine.device == "cuda" else event.self_cpu_time_total
        times_us[part or REST][node is not None] += own
    return {part: (forward / 1e6, backward / 1e6) for part, (forward, backward) in times_us.items()}


def innermost(event: Any) -> tuple[str | None, Any]:
    """Return the part that an event was called from, and the event of the autograd node that it works for, if any.

    Within a node a part is one of the node's own, or None.
    """
    part = None
    while event is not None:
        if event.name.startswith(_BACKWARD):
            return part, event
        if part is None and event.name.startswith(_LABEL):
            part = event.name.removeprefix(_LABEL)
        event = event.cpu_parent
    return part, None


def labelled(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    """Return a function that runs under a part's name."""

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with record_function(_LABEL + part):
            return function(*arguments, **options)

    return run


def label(owner: Any, name: str, part: str) -> None:
    """Let a function of a module, class or object run under a part's name from now on."""
    setattr(owner, name, labelled(getattr(owner, name), part))


def label_functions() -> None:
    """Label what all models of this process share, wherever it was imported to."""
    for name, module in list(sys.modules.items()):
        if name.startswith("core.ops.") or module is published_way:
            for function in CROPPERS & set(vars(module)):
                label(module, function, CROPPING)
    RoiTable.build = staticmethod(labelled(RoiTable.build, CROPPING))  # type: ignore[method-assign]
    label(RoiTable, "find_bins", CROPPING)
    label(trainer_step, "clip_gradients", UPDATE)


def label_parts(stepper: Stepper) -> None:
    """Label the parts of a model and what trains it."""
    model = stepper.model
    first, *others = model.decoder.layers
    for part, modules in {
        BACKBONE: [model.backbone],
        LEVELS: [*model.input_proj, model.position_embedding],
        ENCODER: [model.encoder],
        FIRST_LAYER: [first],
        LAYERS: others,
        HEADS: [model.decoder.norm, *model.decoder.class_embed, *model.decoder.bbox_embed],
        LOSSES: [stepper.assembly.criterion],
    }.items():
        for module in modules:
            label(module, "forward", part)
    for layer in others:
        label(layer, "_attend_boxes", SPARSE)
    label(stepper.assembly.criterion, "matcher", MATCHING)
    label(stepper.optimizer, "step", UPDATE)

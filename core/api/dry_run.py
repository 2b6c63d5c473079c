"""A training run, checked up to its first step and described; nothing is written or fetched."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.api.common import LATEST, Say, say_nothing
from core.api.preparation import OnWeights, PreparedRun, check_run_folder, prepare_run, refuse_contradictions
from core.config.schema import BackboneConfig, Config
from core.errors import CheckpointError, UsageError
from core.torchrun import started_by_torchrun

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainingPlan:
    """What a training run would do.

    Attributes:
        run_folder: where it would write; None for a new folder below `runs`.
        model: the model's name.
        backbone: the backbone's name.
        device: as PyTorch writes it.
        weights_to_fetch: address of the backbone's weights where they are not on this machine, so that whether they
            fit is not known; else None.
        num_parameters: of the model.
        num_trained_parameters: of those that are not frozen.
        classes: names, by label.
        num_train_images: in the training set.
        num_val_images: 0 without validation.
        batch_size: images of a step, over all processes.
        num_processes: that would train together.
        num_micro_batches: of each process in a step.
        largest_micro_batch: images.
        steps_per_epoch: optimizer steps of a whole epoch.
        num_steps: of the whole run.
        num_epochs: of the whole run; the last one may be cut short.
        learning_rates: before warm-up and decay, of `model` and `backbone`; a part that is frozen has none.
        schedule: how they fall.
        precision: of the model's forward and backward pass.
    """

    run_folder: Path | None
    model: str
    backbone: str
    device: str
    weights_to_fetch: str | None
    num_parameters: int
    num_trained_parameters: int
    classes: tuple[str, ...]
    num_train_images: int
    num_val_images: int
    batch_size: int
    num_processes: int
    num_micro_batches: int
    largest_micro_batch: int
    steps_per_epoch: int
    num_steps: int
    num_epochs: int
    learning_rates: dict[str, float]
    schedule: str
    precision: str


def plan_training(
    config: Config,
    *,
    out: Path | None = None,
    weights: Path | None = None,
    resume: bool = False,
    override: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    download: bool = False,
    num_processes: int | None = None,
    on_note: Say = say_nothing,
    on_weights: OnWeights | None = None,
) -> TrainingPlan:
    """Check what `train` checks before its first step, and say what it would do.

    Args:
        config: see `train`, as for all others but these two.
        download: go on without backbone weights that are not on this machine.
        num_processes: that would train on this machine; None for those of torchrun, or one.

    Raises:
        DedetrError: the one that `train` would raise.
    """
    from core.device import choose_device
    from core.processes import ALONE, Processes
    from core.trainer.failures import out_of_memory_errors

    refuse_contradictions(resume=resume, weights=weights, overwrite=overwrite)
    device = choose_device(config.run.device)
    if num_processes is not None:
        device = Processes(0, num_processes, num_processes - 1).device(device)
    planned = num_processes or _num_processes()
    check_run_folder(out, resume=resume, overwrite=overwrite)
    is_fresh = not resume and weights is None
    to_fetch = _weights_to_fetch(config.backbone) if download and is_fresh else None
    with out_of_memory_errors(config.data):
        run = prepare_run(
            config,
            device,
            weights=weights,
            trust=trust,
            load_backbone_weights=is_fresh and to_fetch is None,
            download=False,
            processes=ALONE,
            num_processes=planned,
            on_note=on_note,
            on_weights=on_weights,
        )
    folder = _check_resumable(out or LATEST, run, override=override, on_note=on_note) if resume else out
    return _plan(run, folder, device, planned, to_fetch)


def _plan(
    run: PreparedRun, folder: Path | None, device: torch.device, num_processes: int, to_fetch: str | None
) -> TrainingPlan:
    from core.trainer.optimizer import build_optimizer
    from core.trainer.progress import Progress

    config, model = run.assembly.config, run.assembly.model
    progress = Progress(config.schedule, config.run.eval_every, run.steps_per_epoch)
    groups = build_optimizer(model, config.optimizer).param_groups
    images = min(config.data.batch_size, len(run.train_dataset) * config.data.sample_repeat)
    return TrainingPlan(
        run_folder=folder,
        model=config.model.name,
        backbone=config.backbone.name,
        device=str(device),
        weights_to_fetch=to_fetch,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_trained_parameters=sum(parameter.numel() for group in groups for parameter in group["params"]),
        classes=tuple(category.name for category in run.assembly.classes),
        num_train_images=len(run.train_dataset),
        num_val_images=len(run.validation.dataset) if run.validation else 0,
        batch_size=images,
        num_processes=num_processes,
        num_micro_batches=config.optimizer.accumulate,
        largest_micro_batch=-(-images // (num_processes * config.optimizer.accumulate)),
        steps_per_epoch=run.steps_per_epoch,
        num_steps=progress.num_steps,
        num_epochs=progress.num_epochs,
        learning_rates={group["name"]: group["lr"] for group in groups},
        schedule=config.schedule.kind,
        precision=config.run.precision,
    )


def _num_processes() -> int:
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if started_by_torchrun() and text.isdigit() else 1


def _weights_to_fetch(backbone: BackboneConfig) -> str | None:
    """Return the address of weights that a run with `download` would fetch."""
    from core.models.backbone_weights import find_named_weights, is_weight_file

    if backbone.weights is None or backbone.name.startswith("timm/") or is_weight_file(backbone.weights):
        return None
    try:
        file, url = find_named_weights(backbone.name, backbone.weights)
    except UsageError:
        return None  # there are none: building the model says so
    return None if file.is_file() else url


def _check_resumable(out: Path, run: PreparedRun, *, override: bool, on_note: Say) -> Path:
    """Check that the newest checkpoint of a run fits it; return the run's folder.

    Raises:
        UsageError: settings or data differ.
        CheckpointError: there is no run or checkpoint, or it is of another model.
        MachineError: the run is going on in another process.
    """
    from core.models.weights import load_into, read_weights
    from core.trainer.checkpoint import MODEL_FILE, find_damage
    from core.trainer.pointers import pointed_to
    from core.trainer.resume import check_same_data, check_same_run
    from core.trainer.run_folder import RunFolder

    with RunFolder.reopen(out) as folder:
        manifest = folder.read_manifest()
    newest = pointed_to(folder.checkpoints / "last")
    if newest is None:
        raise CheckpointError(
            "there is no checkpoint to resume from",
            where=str(folder.checkpoints),
            hint="start again with --overwrite, or in another folder",
        )
    damage = find_damage(newest)
    if damage is not None:
        on_note(f"checkpoint {newest} is damaged ({damage}): the run would go on from an earlier one, if there is one")
    else:
        saved = read_weights(newest / MODEL_FILE)
        check_same_run(saved, run.assembly.config, run.assembly.classes, override=override)
        load_into(run.assembly.model, saved)
    check_same_data(manifest, run.inputs.identity, override=override)
    return folder.path

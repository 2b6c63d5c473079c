"""Everything that is checked and built before the first step of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.api.common import LATEST, RUNS, Say
from core.config.schema import Config
from core.errors import UsageError
from core.torchrun import num_processes_here

if TYPE_CHECKING:
    import torch

    from core.assembly import Assembly
    from core.datasets.dataset import DetectionDataset
    from core.models.weight_files import LoadReport
    from core.processes import Processes
    from core.trainer.inputs import TrainingInputs
    from core.trainer.validation import Validation

OnWeights = Callable[["LoadReport"], None]


@dataclass(frozen=True)
class PreparedRun:
    """A run that could make its first step.

    Attributes:
        assembly: the model with its starting weights, and the configuration.
        inputs: annotations, checked.
        train_dataset: what to train on.
        validation: what to evaluate on; None: nothing.
        steps_per_epoch: optimizer steps of a whole epoch.
    """

    assembly: Assembly
    inputs: TrainingInputs
    train_dataset: DetectionDataset
    validation: Validation | None
    steps_per_epoch: int


def check_run_folder(out: Path | None, *, resume: bool = False, overwrite: bool = False) -> None:
    """Check that a run could write into its folder; nothing is made.

    Raises:
        UsageError: there is an earlier run in it, or something else.
        MachineError: it cannot be written.
    """
    from core.trainer.run_folder import RunFolder

    RunFolder.check_free(out or (LATEST if resume else None), overwrite=overwrite or resume, runs_root=RUNS)


def prepare_run(
    config: Config,
    device: torch.device,
    *,
    weights: Path | None,
    trust: bool,
    load_backbone_weights: bool,
    download: bool,
    processes: Processes,
    num_processes: int,
    on_note: Say,
    on_weights: OnWeights | None,
) -> PreparedRun:
    """Read and check the data, and build the model; of several processes one looks at the images.

    Args:
        config: of the run.
        device: where it will train; nothing is put there yet.
        weights: start from this detector's weights.
        trust: unpickle `weights` even if that could run code.
        load_backbone_weights: False leaves the backbone as initialised.
        download: fetch torchvision's backbone weights if they are not on this machine.
        processes: that prepare together.
        num_processes: that share each step.
        on_note: is told what is trained on, and what is unusual about it.
        on_weights: is told what was loaded of `weights`, adapted and new.

    Raises:
        DedetrError: see the classes of `core.errors`.
    """
    from core.assembly import assemble
    from core.datasets.batches import TrainBatches
    from core.datasets.image_cache import free_memory
    from core.evaluation.backends import choose_backend
    from core.label_augmentation import has_policy
    from core.trainer.inputs import cache_images, make_datasets, read_training_inputs
    from core.trainer.loggers import require_loggers
    from core.trainer.optimizer import build_optimizer
    from core.trainer.precision import MixedPrecision

    config = _with_absolute_paths(config)
    require_loggers(config.run.loggers)
    choose_backend(config.run.evaluator)  # refuses what is not installed; the run makes its own
    MixedPrecision(config.run.precision, device)  # refuses what the device cannot; the run makes its own
    inputs = read_training_inputs(config, on_note, check_files=processes.is_main)
    with processes.first_of_machine():
        assembly = assemble(config, inputs.classes, load_backbone_weights=load_backbone_weights, download=download)
    if weights is not None:
        if config.backbone.weights is not None:
            on_note(f"the backbone's weights {config.backbone.weights} are not read: all weights come from {weights}")
        report = _start_from(assembly, weights, trust=trust, on_note=on_note)
        if on_weights is not None:
            on_weights(report)
    build_optimizer(assembly.model, config.optimizer)  # freezes, or refuses to; the run builds its own
    train_dataset, validation = make_datasets(inputs, assembly, on_note, replay=processes.is_main)
    data = config.data
    if data.cache:
        val_dataset = validation.dataset if validation else None
        cache_images(train_dataset, val_dataset, free_memory(), num_processes_here(num_processes), on_note)
    batches = TrainBatches(
        len(train_dataset),
        data.batch_size,
        config.run.seed,
        world_size=num_processes,
        accumulate=config.optimizer.accumulate,
        repeat=data.sample_repeat,
    )
    _note_unreached_drop(config, batches.num_steps, on_note)
    policy = config.label_augmentation
    if policy.two_stage_match and not has_policy(policy):
        on_note("two-stage matching changes nothing, as no label is repeated")
    return PreparedRun(assembly, inputs, train_dataset, validation, batches.num_steps)


def check_parts(config: Config, num_processes: int) -> None:
    """Check that a batch can be shared by so many processes, before they are started.

    Raises:
        UsageError: it has fewer images than they have micro-batches together.
    """
    from core.datasets.batches import TrainBatches

    size = config.data.batch_size
    TrainBatches(size, size, seed=0, world_size=num_processes, accumulate=config.optimizer.accumulate)


def refuse_contradictions(*, resume: bool, weights: Path | None, overwrite: bool) -> None:
    """Check that a run to resume is asked for nothing that only a new one can have.

    Raises:
        UsageError: it is.
    """
    if resume and (weights is not None or overwrite):
        raise UsageError("--resume goes on with everything of a run", hint="leave out --weights and --overwrite")


def _with_absolute_paths(config: Config) -> Config:
    """Return a configuration that means the same data wherever a later command is typed."""
    data = config.data
    changes = {"root": str(Path(data.root).absolute())}
    if data.subset is not None and Path(data.subset).is_file():
        changes["subset"] = str(Path(data.subset).absolute())
    return config.model_copy(update={"data": data.model_copy(update=changes)})


def _start_from(assembly: Assembly, weights: Path, *, trust: bool, on_note: Say) -> LoadReport:
    """Fill a detector with the weights of another, which may have other classes and another number of queries."""
    from core.models.weights import load_into, read_weights
    from core.trainer.checkpoint import find_model_file

    names = [category.name for category in assembly.classes]
    report = load_into(assembly.model, read_weights(find_model_file(weights), trust=trust), names)
    kept = ", ".join(report.kept_classes) or "none"
    fresh = ", ".join(report.fresh_classes) or "none"
    on_note(f"weights of {weights}: {len(report.loaded)} tensors; classes kept: {kept}; new: {fresh}")
    return report


def _note_unreached_drop(config: Config, steps_per_epoch: int, on_note: Say) -> None:
    from core.trainer.progress import Progress

    schedule = config.schedule
    progress = Progress(schedule, config.run.eval_every, steps_per_epoch)
    drop, drop_step = schedule.lr_drop_epoch, schedule.lr_drop_step
    if schedule.kind != "step":
        return
    if drop_step is not None and drop_step >= progress.num_steps:
        on_note(f"the learning rates drop after step {drop_step}, which {progress.num_steps} steps do not reach")
    elif drop_step is None and drop is not None and drop >= progress.num_epochs:
        on_note(f"the learning rates drop after epoch {drop}, which {progress.num_epochs} epochs do not reach")

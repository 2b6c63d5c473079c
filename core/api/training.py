"""A configuration, trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.api.common import LATEST, RUNS, Say, say_nothing
from core.config.schema import Config
from core.errors import MachineError, UsageError

if TYPE_CHECKING:
    from core.assembly import Assembly
    from core.trainer.loop import TrainResult
    from core.trainer.reporter import Reporter
    from core.trainer.run_folder import RunFolder


def train(
    config: Config,
    *,
    out: Path | None = None,
    weights: Path | None = None,
    resume: bool = False,
    override: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    download: bool = False,
    command: Sequence[str] = (),
    reporter: Reporter | None = None,
    on_note: Say = say_nothing,
) -> TrainResult:
    """Train a detector in one process; see `core.trainer.loop.train`.

    Args:
        config: of the run, see `resolve_train_config`.
        out: the run folder; None for a new one below `runs`, or to resume the latest.
        weights: start from this detector's weights.
        resume: go on with the run in `out`.
        override: resume although settings or data differ from the run's.
        overwrite: replace an earlier run in `out`.
        trust: unpickle `weights` even if that could run code.
        download: fetch torchvision's backbone weights if they are not on this machine; else no network is used.
        command: the words of the command line, for the manifest.
        reporter: is told what happens.
        on_note: is told what is trained on, and what is unusual about it.

    Raises:
        DedetrError: see the classes of `core.errors`; nothing is made of a run that cannot begin.
    """
    from core.assembly import assemble
    from core.device import choose_device
    from core.trainer.inputs import make_datasets, read_training_inputs
    from core.trainer.loop import train as run_loop
    from core.trainer.run_folder import RunFolder

    if resume and (weights is not None or overwrite):
        raise UsageError("--resume goes on with everything of a run", hint="leave out --weights and --overwrite")
    RunFolder.check_free(out, overwrite=overwrite or resume)
    config = _with_absolute_paths(config)
    device = choose_device(config.run.device)
    _note_unreached_drop(config, on_note)
    inputs = read_training_inputs(config, on_note)
    is_fresh = not resume and weights is None
    assembly = assemble(config, inputs.classes, load_backbone_weights=is_fresh, download=download)
    if weights is not None:
        _start_from(assembly, weights, trust=trust, on_note=on_note)
    train_dataset, validation = make_datasets(inputs, assembly, on_note)
    folder = (
        RunFolder.reopen(out or LATEST) if resume else RunFolder.create(out, config.model.name, overwrite=overwrite)
    )
    with folder:
        return run_loop(
            assembly,
            train_dataset,
            validation,
            folder,
            device,
            inputs.identity,
            command=command,
            reporter=reporter,
            on_first_checkpoint=lambda: _mark_latest(folder, on_note),
            resume=resume,
            override=override,
        )


def _with_absolute_paths(config: Config) -> Config:
    """Return a configuration that means the same data wherever a later command is typed."""
    data = config.data
    changes = {"root": str(Path(data.root).absolute())}
    if data.subset is not None and Path(data.subset).is_file():
        changes["subset"] = str(Path(data.subset).absolute())
    return config.model_copy(update={"data": data.model_copy(update=changes)})


def _mark_latest(folder: RunFolder, on_note: Say) -> None:
    """Let `runs/latest` point to a run; where that folder cannot be written the run is no worse for it."""
    try:
        folder.mark_latest(RUNS)
    except MachineError as error:
        on_note(f"{LATEST} was not set: {error}")


def _start_from(assembly: Assembly, weights: Path, *, trust: bool, on_note: Say) -> None:
    """Fill a detector with the weights of another; the head's rows go to the classes of equal name."""
    from core.models.weights import load_into, read_weights
    from core.trainer.checkpoint import find_model_file

    names = [category.name for category in assembly.classes]
    report = load_into(assembly.model, read_weights(find_model_file(weights), trust=trust), names)
    kept = ", ".join(report.kept_classes) or "none"
    fresh = ", ".join(report.fresh_classes) or "none"
    on_note(f"weights of {weights}: {len(report.loaded)} tensors; classes kept: {kept}; new: {fresh}")


def _note_unreached_drop(config: Config, on_note: Say) -> None:
    drop, epochs = config.schedule.lr_drop_epoch, config.schedule.epochs
    if drop is not None and drop >= epochs:
        on_note(f"the learning rate drops after epoch {drop}, which {epochs} epochs do not reach")

"""A configuration, trained."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.api.common import LATEST, RUNS, Say, say_nothing
from core.api.preparation import OnWeights, check_run_folder, prepare_run, refuse_contradictions
from core.config.schema import Config
from core.errors import MachineError

if TYPE_CHECKING:
    from core.trainer.reporter import Reporter
    from core.trainer.run_folder import RunFolder
    from core.trainer.trainer import TrainResult


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
    on_weights: OnWeights | None = None,
) -> TrainResult:
    """Train a detector; see `core.trainer.train.train`.

    Under torchrun (or `launch`) each process calls this alike; the first one writes, and speaks.

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
        on_weights: is told what was loaded of `weights`, adapted and new.

    Raises:
        DedetrError: see the classes of `core.errors`; nothing is made of a run that cannot begin.
    """
    from core.device import choose_device
    from core.processes import join_processes
    from core.trainer.failures import out_of_memory_errors
    from core.trainer.train import train as run_training

    refuse_contradictions(resume=resume, weights=weights, overwrite=overwrite)
    wanted = choose_device(config.run.device)
    with join_processes(wanted) as processes, out_of_memory_errors(config.data):
        if processes.is_main:
            check_run_folder(out, resume=resume, overwrite=overwrite)
        else:
            on_note, on_weights = say_nothing, None
        run = prepare_run(
            config,
            wanted,
            weights=weights,
            trust=trust,
            load_backbone_weights=not resume and weights is None,
            download=download,
            processes=processes,
            num_processes=processes.world_size,
            on_note=on_note,
            on_weights=on_weights,
        )
        with contextlib.ExitStack() as stack:
            folder: RunFolder | None = None
            if processes.is_main:
                folder = stack.enter_context(_open_folder(out, config.model.name, resume=resume, overwrite=overwrite))
            return run_training(
                run.assembly,
                run.train_dataset,
                run.validation,
                folder,
                processes.device(wanted),
                run.inputs.identity,
                run_path=processes.broadcast(folder.path if folder else None),
                command=command,
                reporter=reporter,
                on_first_checkpoint=(lambda: _mark_latest(folder, on_note)) if folder else None,
                resume=resume,
                override=override,
                processes=processes,
            )


def _open_folder(out: Path | None, model: str, *, resume: bool, overwrite: bool) -> RunFolder:
    from core.trainer.run_folder import RunFolder

    return RunFolder.reopen(out or LATEST) if resume else RunFolder.create(out, model, overwrite=overwrite)


def _mark_latest(folder: RunFolder, on_note: Say) -> None:
    """Let `runs/latest` point to a run; where that folder cannot be written the run is no worse for it."""
    try:
        folder.mark_latest(RUNS)
    except MachineError as error:
        on_note(f"{LATEST} was not set: {error}")

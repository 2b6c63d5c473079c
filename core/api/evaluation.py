"""A checkpoint, scored."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.api.checkpoints import open_checkpoint, open_split
from core.api.common import OnImages, Say, count_nothing, say_nothing
from core.errors import MachineError
from core.files import write_json

if TYPE_CHECKING:
    from core.evaluation.coco import EvaluationResult


@dataclass(frozen=True)
class EvaluationOutcome:
    """How good a checkpoint is.

    Attributes:
        checkpoint: the weight file.
        data: the data set.
        split: which part of it.
        evaluation: the numbers.
    """

    checkpoint: Path
    data: Path
    split: str
    evaluation: EvaluationResult


def evaluate(
    checkpoint: Path | None = None,
    *,
    data: Path | None = None,
    split: str = "val",
    assignments: Sequence[str] = (),
    device: str | None = None,
    trust: bool = False,
    on_images: OnImages = count_nothing,
    on_note: Say = say_nothing,
) -> EvaluationOutcome:
    """Score a checkpoint on a split.

    Under torchrun (or `launch`) each process calls this alike, and all get the same numbers. Where nothing differs
    from the run, they are also written into `eval/` of its folder.

    Args:
        checkpoint: run folder, checkpoint folder or weight file; None for the latest run.
        data: the data set; None for the one it was trained on.
        split: train, val or test.
        assignments: `section.key=value`, for what may change after training.
        device: None for the best that there is.
        trust: unpickle the file even if that could run code.
        on_images: is told how many of how many images are done.
        on_note: is told what was evaluated.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
        DataError: there is no such data set or split, it has a fault, or other classes than the checkpoint.
        MachineError: the evaluator or the device is not there.
    """
    from core.datasets.loaders import EvalLoader, data_worker_errors
    from core.device import choose_device
    from core.evaluation.coco import CocoEvaluator
    from core.evaluation.run import evaluate as score
    from core.processes import join_processes
    from core.trainer.failures import out_of_memory_errors

    with join_processes(choose_device(device or "auto")) as processes:
        if not processes.is_main:
            on_note, on_images = say_nothing, count_nothing
        own_device = str(processes.device(choose_device(device or "auto")))
        loaded, on = open_checkpoint(checkpoint, assignments, own_device, trust)
        dataset, annotations, images = open_split(data, split, loaded, on_note, check_files=processes.is_main)
        config, world_size = loaded.assembly.config, processes.world_size
        evaluator = CocoEvaluator(annotations, loaded.assembly.classes, backend=config.run.evaluator)
        on_note(f"evaluating {loaded.path} on {split} of {dataset.root}, scored by {evaluator.backend_name}")
        batches = EvalLoader(
            images, config.data, rank=processes.rank, world_size=world_size, pin_memory=on.type == "cuda"
        )
        with contextlib.closing(batches), data_worker_errors(), out_of_memory_errors(config.data):
            result = score(
                loaded.assembly.model,
                loaded.assembly.postprocess,
                batches,
                evaluator,
                on,
                lambda done: on_images(min(done * world_size, len(images)), len(images)),
                processes,
            )
    outcome = EvaluationOutcome(loaded.path, dataset.root, split, result)
    # What was scored otherwise than the run itself does must not pass for the run's own number.
    if processes.is_main and data is None and not assignments:
        _keep(outcome, on_note)
    return outcome


def _keep(outcome: EvaluationOutcome, on_note: Say) -> None:
    """Write the numbers into the run's folder, if the checkpoint is a run's."""
    from core.trainer.run_folder import run_folder_of

    run = run_folder_of(outcome.checkpoint)
    if run is None:
        return
    try:
        write_json(run / "eval" / f"{outcome.split}.json", asdict(outcome))
    except MachineError as error:
        on_note(f"the numbers were not kept: {error}")

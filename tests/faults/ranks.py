"""What a process of several sees of the data, learns and scores; also a command, which torchrun starts.

python -m tests.faults.ranks FOLDER     (writes FOLDER/RANK.pt)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.datasets.batches import Batch, collate
from core.datasets.dataset import DetectionDataset
from core.datasets.loaders import TrainLoader
from core.processes import Processes, join_processes
from core.trainer.reporter import NullReporter
from core.trainer.step import Stepper
from core.trainer.validation import Validation, Validator
from tests.datasets.scenes import CLASSES, make_scene
from tests.evaluation.test_run import ColorFinder
from tests.trainer.test_many_processes import EXACT, SIDE
from tests.trainer.tiny import tiny_assembly, tiny_config, tiny_datasets, tiny_run

CPU = torch.device("cpu")
NUM_IMAGES = 11
NUM_VAL = (1, 2, 7)


def answers(folder: Path, processes: Processes) -> dict[str, Any]:
    """Return what this process sees of every step, learns from images without boxes, and scores."""
    return {
        "steps": {workers: _steps(folder, processes, workers) for workers in (0, 2)},
        "without boxes": _step_without_boxes(folder, processes),
        "scores": {count: _score(folder, processes, count) for count in NUM_VAL},
    }


def _steps(folder: Path, processes: Processes, num_workers: int) -> list[dict[int, Tensor]]:
    """Return the pixels by image id of each step of two epochs, and of the second one gone on with at its step 1."""
    config = tiny_config(data={"batch_size": 4, "num_workers": num_workers})
    dataset, _ = tiny_datasets(folder / "images", tiny_assembly(config), NUM_IMAGES)
    loader = TrainLoader(dataset, config.data, seed=3, rank=processes.rank, world_size=processes.world_size)
    steps = [step for epoch, first in ((0, 0), (1, 0), (1, 1)) for step in loader.epoch(epoch, first)]
    loader.close()
    return [dict(part for batch in step for part in _images(batch)) for step in steps]


def _images(batch: Batch) -> list[tuple[int, Tensor]]:
    return [
        (image_id, batch.pixels[row, :height, :width].clone())
        for row, (image_id, (height, width)) in enumerate(zip(batch.image_ids, batch.sizes_hw, strict=True))
    ]


def _step_without_boxes(folder: Path, processes: Processes) -> dict[str, Any]:
    """Make a step with boxes in the first process alone, and one without any.

    The scene's third image is the one without: it comes as often as is needed.
    """
    assembly = tiny_assembly(tiny_config(**EXACT))
    dataset, _ = tiny_datasets(folder / "square", assembly, 4, (SIDE, SIDE))
    stepper = Stepper(assembly, CPU, folder / "diverged", processes)
    stepper.train()
    losses = []
    for step, images in enumerate(((0, 1, 2, 2, 2, 2), (2, 2, 2, 2, 2, 2))):
        share = len(images) // processes.world_size
        own = images[processes.rank * share : (processes.rank + 1) * share]
        part = collate([dataset[(0, index)] for index in own])
        losses.append(stepper.step([part], step, epoch=0, num_steps=9).loss)
    return {"losses": losses, "weights": {name: value.clone() for name, value in assembly.model.state_dict().items()}}


def _score(folder: Path, processes: Processes, num_images: int) -> dict[str, Any]:
    """Evaluate a model that finds the scene's rectangles, for the AP, and one whose numbers depend on the padding."""
    assembly = tiny_assembly(tiny_config(model={"name": "dela-conddetr"}))
    images = folder / f"val-{num_images}"
    scenes = make_scene(images, num_images, keep=True)
    dataset = DetectionDataset(scenes, images, CLASSES, assembly.eval_transform, seed=0, drop_crowds=False)
    validator = Validator(Validation(dataset, scenes), assembly, CPU, processes)
    polls: list[int] = []
    results = [
        validator.run(model, NullReporter(), lambda: polls.append(1), epoch=1, step=1)  # type: ignore[arg-type]
        for model in (ColorFinder(), assembly.model)
    ]
    found = validator._evaluator.detections
    return {
        "stats": [result.stats for result in results],
        "num_images": results[0].num_images,
        "num_polls": len(polls),
        "found": {image_id: (found[image_id].scores, found[image_id].boxes_xyxy_px) for image_id in found},
    }


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with join_processes(CPU) as processes:
        tiny_run(folder / "run", tiny_config(**EXACT), resume=True, processes=processes, size=(SIDE, SIDE))
        torch.save(answers(folder / str(processes.rank), processes), folder / f"{processes.rank}.pt")


if __name__ == "__main__":
    main()

"""A run's model on the validation split, evaluated by all processes together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from core.annotations.records import AnnotationSet
from core.assembly import Assembly
from core.datasets.batches import Batch
from core.datasets.dataset import DetectionDataset
from core.datasets.loaders import EvalLoader
from core.evaluation.coco import CocoEvaluator, EvaluationResult
from core.evaluation.run import evaluate
from core.models.detector import Detector
from core.processes import Processes
from core.trainer.compilation import compiled_code_unused
from core.trainer.loggers.pictures import draw_logged_images
from core.trainer.reporter import PredictionsDrawn, Reporter


@dataclass(frozen=True)
class Validation:
    """What a run is evaluated on.

    Attributes:
        dataset: images, with the transform of evaluation.
        annotations: what should be found in them.
    """

    dataset: DetectionDataset
    annotations: AnnotationSet


class Validator:
    """Scores models on a split.

    Args:
        validation: the split.
        assembly: what belongs to the models.
        device: where they are.
        processes: that share the images.

    Raises:
        MachineError: the configuration's evaluator is not installed.
    """

    def __init__(self, validation: Validation, assembly: Assembly, device: torch.device, processes: Processes) -> None:
        self.validation = validation
        self.assembly = assembly
        self.device = device
        self.processes = processes
        self.loader = EvalLoader(
            validation.dataset,
            assembly.config.data,
            rank=processes.rank,
            world_size=processes.world_size,
            pin_memory=device.type == "cuda",
        )
        self._evaluator = CocoEvaluator(validation.annotations, assembly.classes, backend=assembly.config.run.evaluator)

    def run(
        self, model: Detector, reporter: Reporter, poll: Callable[[], None], epoch: int, step: int
    ) -> EvaluationResult:
        """Score a model, and draw some of its detections if the reporter wants pictures.

        Args:
            model: in any mode.
            reporter: is told of each batch, and given the pictures.
            poll: called equally often in all processes; what it raises ends the evaluation.
            epoch: epochs done, for the pictures.
            step: steps done, likewise.

        Returns:
            The same numbers in all processes.
        """
        self._evaluator.clear()
        # Compiled code rounds otherwise than `dedetr eval`, and would be made anew for evaluation's image sizes.
        with compiled_code_unused() if self.assembly.config.run.compile else contextlib.nullcontext():
            result = evaluate(
                model,
                self.assembly.postprocess,
                self._batches(reporter, poll),
                self._evaluator,
                self.device,
                processes=self.processes,
            )
        poll()
        num_images = self.assembly.config.run.num_logged_images
        if reporter.wants_pictures and num_images:
            names = [category.name for category in self.assembly.classes]
            pictures = draw_logged_images(self.validation.dataset, self._evaluator.detections, names, num_images)
            reporter.predictions_drawn(PredictionsDrawn(epoch, step, pictures))
        return result

    def close(self) -> None:
        """End the data workers."""
        self.loader.close()

    def _batches(self, reporter: Reporter, poll: Callable[[], None]) -> Iterator[Batch]:
        """Yield this process's batches, and poll as often as every other process does, whatever its share is."""
        num_polls = self.processes.largest(len(self.loader))
        reporter.evaluation_started(num_polls)
        for batch in self.loader:
            yield batch
            poll()
            num_polls -= 1
            reporter.evaluation_batch_done()
        for _ in range(num_polls):
            poll()

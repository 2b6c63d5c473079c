"""A model's detections for a whole split, and their score."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from core.datasets.batches import Batch
from core.evaluation.coco import CocoEvaluator, EvaluationResult
from core.processes import ALONE, Processes
from core.structures import Detections, ModelOutput

PostprocessFunction = Callable[[ModelOutput, Tensor], "list[Detections]"]
"""(model output, original sizes (B, 2) hw) -> detections of each image."""


def collect_detections(
    model: nn.Module,
    postprocess: PostprocessFunction,
    batches: Iterable[Batch],
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
) -> dict[int, Detections]:
    """Run the model over batches.

    The model is in evaluation mode meanwhile, and then in the mode it was in.

    Args:
        model: maps an ImageBatch to a ModelOutput.
        postprocess: turns that into detections.
        batches: each image once.
        device: where the model is.
        on_batch: called after each batch with the number of images done so far; what it raises ends the run.

    Returns:
        By image id, on the CPU, in pixels of the original images.

    Raises:
        ValueError: an image came twice.
    """
    collected: dict[int, Detections] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                on_device = batch.to(device)
                found = postprocess(model(on_device.images), on_device.original_sizes_hw)
                for image_id, detections in zip(batch.image_ids, found, strict=True):
                    if image_id in collected:
                        raise ValueError(f"image id {image_id} was evaluated twice")
                    collected[image_id] = Detections(
                        detections.boxes_xyxy_px.cpu(), detections.scores.cpu(), detections.labels.cpu()
                    )
                if on_batch is not None:
                    on_batch(len(collected))
    finally:
        model.train(was_training)
    return collected


def evaluate(
    model: nn.Module,
    postprocess: PostprocessFunction,
    batches: Iterable[Batch],
    evaluator: CocoEvaluator,
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
) -> EvaluationResult:
    """Run the model over a split and score it.

    Args:
        model: as in `collect_detections`, like all but the two below.
        postprocess: likewise.
        batches: each image in one process only.
        evaluator: takes what the main process has gathered.
        device: where the model is.
        on_batch: likewise.
        processes: that share the work.

    Returns:
        The same numbers in all processes.

    Raises:
        ValueError: an image of the split came twice or not at all.
    """
    result: EvaluationResult | None = None
    gathered = processes.gather(collect_detections(model, postprocess, batches, device, on_batch))
    for collected in gathered or ():
        for image_id, detections in collected.items():
            evaluator.add(image_id, detections)
    if gathered is not None:
        result = evaluator.compute()
    result = processes.broadcast(result)
    if result is None:
        raise ValueError("the main process has scored nothing")
    return result

"""From images, opened or in files, to what a person wants to see in them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from core.annotations.images import open_image
from core.datasets.batches import collate
from core.datasets.dataset import Sample, Transform
from core.datasets.transforms import clip_boxes
from core.errors import DataError
from core.structures import Detections, ModelOutput, Target

_BATCHES_READ_AHEAD = 4
"""Among how many batches' worth of images those of equal size are looked for."""


@dataclass(frozen=True)
class ImagePrediction:
    """What was found in one image file, or why it could not be read.

    Attributes:
        path: the file, as it was named.
        size_wh: width and height in pixels; None where the file could not be read.
        detections: by falling score, clipped to the image, on the CPU; None where the file could not be read.
        error: what is wrong with the file; None where it was read.
    """

    path: Path
    size_wh: tuple[int, int] | None
    detections: Detections | None
    error: DataError | None = None


def predict_images(
    model: nn.Module,
    postprocess: Callable[[ModelOutput, Tensor], list[Detections]],
    transform: Transform,
    paths: Sequence[Path],
    device: torch.device,
    *,
    batch_size: int,
    threshold: float,
    labels: Collection[int] | None = None,
) -> Iterator[ImagePrediction]:
    """Detect objects in image files; see `detect`.

    Files that cannot be read do not stop the rest: their prediction carries the error.

    Yields:
        One prediction for each path, in order.
    """
    images = (_read(path) for path in paths)
    found = detect(
        model, postprocess, transform, images, device, batch_size=batch_size, threshold=threshold, labels=labels
    )
    for path, result in zip(paths, found, strict=True):
        if isinstance(result, DataError):
            yield ImagePrediction(path, None, None, result)
        else:
            yield ImagePrediction(path, *result)


def detect(
    model: nn.Module,
    postprocess: Callable[[ModelOutput, Tensor], list[Detections]],
    transform: Transform,
    images: Iterable[Tensor | DataError],
    device: torch.device,
    *,
    batch_size: int,
    threshold: float,
    labels: Collection[int] | None = None,
) -> Iterator[tuple[tuple[int, int], Detections] | DataError]:
    """Detect objects in opened images; what lies outside an image is left out.

    A batch holds images of one size (after the transform): padding would change what the backbone sees at the
    edges, and with it the result. So the batch size changes the speed alone.

    Args:
        model: maps an ImageBatch to a ModelOutput; set to evaluation mode.
        postprocess: turns that into detections.
        transform: that of evaluation.
        images: (3, H, W) uint8 RGB, taken lazily; an error stands for an image that cannot be read.
        device: where the model is.
        batch_size: images at a time, at most.
        threshold: the least score that is kept.
        labels: only these are kept; None keeps all.

    Yields:
        For each image, in order, its width and height in pixels and its detections, or its error.
    """
    model.eval()
    wanted = None if labels is None else torch.tensor(sorted(labels), dtype=torch.int64)
    remaining = iter(images)
    num_read = batch_size * (_BATCHES_READ_AHEAD if batch_size > 1 else 1)
    while samples := [_sample(image, transform, row) for row, image in enumerate(islice(remaining, num_read))]:
        found: dict[int, Detections] = {}
        for group in _of_one_size(samples, batch_size):
            batch = collate(group).to(device)
            with torch.inference_mode():
                detected = postprocess(model(batch.images), batch.original_sizes_hw)
            found.update(zip(batch.image_ids, detected, strict=True))
        for row, sample in enumerate(samples):
            if isinstance(sample, DataError):
                yield sample
                continue
            height, width = sample.original_size_hw
            yield (width, height), _presentable(found[row], height, width, threshold, wanted)


def _read(path: Path) -> Tensor | DataError:
    try:
        return cast("Tensor", functional.pil_to_tensor(open_image(path)))
    except DataError as error:
        return error


def _sample(image: Tensor | DataError, transform: Transform, row: int) -> Sample | DataError:
    if isinstance(image, DataError):
        return image
    no_boxes, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    transformed = transform(image, no_boxes, no_labels, None)
    target = Target(transformed.boxes_cxcywh_norm, transformed.labels)
    size_hw = (image.shape[-2], image.shape[-1])
    return Sample(transformed.pixels, target, row, size_hw, transformed.normalisation)


def _of_one_size(samples: Sequence[Sample | DataError], batch_size: int) -> Iterator[list[Sample]]:
    """Yield the samples in groups of at most `batch_size` whose pixels have one shape."""
    by_shape: dict[torch.Size, list[Sample]] = {}
    for sample in samples:
        if isinstance(sample, Sample):
            by_shape.setdefault(sample.pixels.shape, []).append(sample)
    for alike in by_shape.values():
        for first in range(0, len(alike), batch_size):
            yield alike[first : first + batch_size]


def _presentable(
    detections: Detections, height: int, width: int, threshold: float, labels: Tensor | None
) -> Detections:
    """Return what a person wants to see: above the threshold, inside the image, the surest first."""
    on_cpu = Detections(detections.boxes_xyxy_px.cpu(), detections.scores.cpu(), detections.labels.cpu())
    keep = on_cpu.scores >= threshold
    sure = on_cpu.select(keep if labels is None else keep & torch.isin(on_cpu.labels, labels))
    boxes, kept = clip_boxes(sure.boxes_xyxy_px, torch.tensor([height, width]))
    inside = Detections(boxes, sure.scores[kept], sure.labels[kept])
    return inside.select(inside.scores.argsort(descending=True, stable=True))

"""Samples to padded batches, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Sampler

from core.datasets.dataset import Sample
from core.datasets.seeds import derived_generator
from core.datasets.transforms import Normalisation
from core.errors import UsageError
from core.structures import ImageBatch, Target


@dataclass(frozen=True)
class Batch:
    """Padded images with what belongs to them.

    Attributes:
        pixels: (B, H, W, 3) uint8, RGB, padded at the bottom and right.
        sizes_hw: un-padded height and width of each image in pixels.
        normalisation: what pixels still need before a model sees them.
        targets: one for each image.
        image_ids: as in the annotation file.
        original_sizes_hw: (B, 2) int64, height and width in pixels before any transform.
        file_names: as in the annotation file; empty where an image has none.
    """

    pixels: Tensor
    sizes_hw: tuple[tuple[int, int], ...]
    normalisation: Normalisation
    targets: tuple[Target, ...]
    image_ids: tuple[int, ...]
    original_sizes_hw: Tensor
    file_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def images(self) -> ImageBatch:
        """What the model sees, on the device of the batch; made from its bytes each time it is asked for."""
        device = self.pixels.device
        pixels = self.normalisation.apply(self.pixels)
        padding_mask = torch.ones(self.pixels.shape[:3], dtype=torch.bool, device=device)
        for row, (height, width) in enumerate(self.sizes_hw):
            padding_mask[row, :height, :width] = False
            pixels[row, :, height:] = 0
            pixels[row, :, :height, width:] = 0
        sizes_hw = torch.tensor(self.sizes_hw, dtype=torch.int64).to(device, non_blocking=True)
        return ImageBatch(pixels, padding_mask, sizes_hw)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, but for its targets: they are matched on the host.

        From pinned memory the copies do not block.
        """
        return replace(
            self,
            pixels=self.pixels.to(device, non_blocking=True),
            original_sizes_hw=self.original_sizes_hw.to(device, non_blocking=True),
        )

    def share_memory(self) -> None:
        """Move all tensors into memory that processes share, in place.

        Raises:
            RuntimeError: there is not enough of it.
        """
        labels = [tensor for target in self.targets for tensor in (target.boxes_cxcywh_norm, target.labels)]
        for tensor in (self.pixels, self.original_sizes_hw, *labels):
            if tensor.numel():
                tensor.share_memory_()  # type: ignore[no-untyped-call]

    def pin_memory(self) -> Batch:
        """Return the batch with all that `to` moves in page-locked memory; called by PyTorch's DataLoader."""
        pixels, original_sizes_hw = self.pixels.pin_memory(), self.original_sizes_hw.pin_memory()
        return replace(self, pixels=pixels, original_sizes_hw=original_sizes_hw)


def pad_images(images: Sequence[Tensor]) -> Tensor:
    """Return images (3, h, w) as (B, H, W, 3), padded with zeros at the bottom and right to the largest sides."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    padded = images[0].new_zeros(len(images), height, width, 3)
    for row, image in enumerate(images):
        padded[row, : image.shape[1], : image.shape[2]] = image.permute(1, 2, 0)
    return padded


def collate(samples: Sequence[Sample]) -> Batch:
    """Make a batch of at least one sample, all of one normalisation."""
    return Batch(
        pixels=pad_images([sample.pixels for sample in samples]),
        sizes_hw=tuple((sample.pixels.shape[1], sample.pixels.shape[2]) for sample in samples),
        normalisation=samples[0].normalisation,
        targets=tuple(sample.target for sample in samples),
        image_ids=tuple(sample.image_id for sample in samples),
        original_sizes_hw=torch.tensor([sample.original_size_hw for sample in samples], dtype=torch.int64),
        file_names=tuple(sample.file_name for sample in samples),
    )


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Which images, as (epoch, index), make which micro-batch of an epoch.

    The order is a permutation drawn from (seed, epoch), cut into batches; the last incomplete one is left out, unless
    there are fewer images than one batch. The batch of a step is cut into as equal parts as can be, one for each
    micro-batch of each process: however many there are, all of them together see the same images in the same step.

    With `repeat` every image comes that often in an epoch, each time as if in an epoch of its own, so that its
    augmentation differs.

    Args:
        num_images: in the training set.
        batch_size: images of a step, over all processes.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
        accumulate: micro-batches of each process in a step.
        repeat: how often each image comes in an epoch.

    Raises:
        UsageError: there are no images, or fewer in a batch than parts to cut it into.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        repeat: int = 1,
    ) -> None:
        if num_images == 0:
            raise UsageError("there is no image to train on", where="data.subset", hint="choose a larger subset")
        self.num_images = num_images
        self.repeat = repeat
        self.batch_size = min(batch_size, num_images * repeat)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self.epoch = 0
        self.start_step = 0
        self.num_steps = num_images * repeat // self.batch_size
        num_parts = world_size * accumulate
        if self.batch_size < num_parts:
            few = f"a training set of {num_images}" if self.batch_size < batch_size else f"a batch of {batch_size}"
            raise UsageError(
                f"{few} cannot be shared by {_count(world_size, 'process')} with "
                f"{_count(accumulate, 'micro-batch')} each",
                where="data.batch_size" if world_size > 1 else "optimizer.accumulate",
                hint="use fewer processes or micro-batches"
                if self.batch_size < batch_size
                else f"--batch-size {num_parts} or more",
            )

    def __len__(self) -> int:
        return (self.num_steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = derived_generator("order", self.seed, self.epoch)
        order = torch.randperm(self.num_images * self.repeat, generator=generator).tolist()
        for step in range(self.start_step, self.num_steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            for micro in range(self.accumulate):
                yield [self._key(place) for place in self._part(batch, micro * self.world_size + self.rank)]

    def _part(self, batch: list[int], number: int) -> list[int]:
        num_parts = self.world_size * self.accumulate
        return batch[number * len(batch) // num_parts : (number + 1) * len(batch) // num_parts]

    def _key(self, place: int) -> tuple[int, int]:
        copy, index = divmod(place, self.num_images)
        return self.epoch * self.repeat + copy, index


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}es"


class EvalBatches(Sampler[list[tuple[int, int]]]):
    """All images in the file's order; whole batches go to the ranks in turn, so each image is seen once.

    Batches are the same for any number of processes, so their padding and with it the numbers are too. Ranks
    may get different numbers of batches, also none.
    """

    def __init__(self, num_images: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._firsts = range(rank * batch_size, num_images, world_size * batch_size)
        self._num_images = num_images
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._firsts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in self._firsts:
            yield [(0, index) for index in range(first, min(first + self._batch_size, self._num_images))]

"""Images per second of the data side alone, against the paper's pipeline on PIL images.

    python benchmarks/loader.py --data DIR [--short-sides 800 320] [--workers 0 1 2] [--rounds 3]

DIR is a prepared data set or a plain COCO layout. Both sides read the same files, draw the same random numbers, and
give the same padded, normalised batches of four (to a few grey levels, which is checked). Without workers everything
happens in one thread, batch by batch in turn: images per second and core. With N workers each side in turn reads an
epoch through a DataLoader. "Bytes" are our batches as they leave the loader, to be normalised on the model's device;
"floats" have been normalised on the CPU, in the same thread, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from core.annotations.prepared import open_dataset, read_split
from core.config.schema import DataConfig
from core.datasets.batches import EvalBatches, collate
from core.datasets.dataset import DetectionDataset
from core.datasets.image_cache import ImageCache
from core.datasets.loaders import EvalLoader
from core.datasets.seeds import derived_generator
from core.datasets.transforms import EvalTransform, TrainTransform, resized_hw
from core.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from runs import table

BATCH_SIZE = 4
Key = tuple[int, int]


class PaperBatch(NamedTuple):
    pixels: Tensor
    padding_mask: Tensor


class PaperDataset(Dataset[Tensor]):
    """DETR's pipeline: decoding, flip, resizes and crop by PIL, then a float tensor of 0..1, then mean and std.

    Boxes, which cost little, are left out.
    """

    def __init__(self, dataset: DetectionDataset, config: DataConfig, *, train: bool) -> None:
        self.dataset, self.config, self.train = dataset, config, train

    def __getitem__(self, key: Key) -> Tensor:
        epoch, index = key
        image = Image.open(self.dataset.image_root / self.dataset.images[index].file_name).convert("RGB")
        side = self.config.short_side
        if self.train:
            image, side = self._augmented(image, derived_generator("augmentation", self.dataset.seed, epoch, index))
        tensor = functional.to_tensor(_resized(image, side, self.config.max_long_side))
        normalised: Tensor = functional.normalize(tensor, IMAGENET_MEAN, IMAGENET_STD)
        return normalised

    def _augmented(self, image: Image.Image, generator: torch.Generator) -> tuple[Image.Image, int]:
        """Flip and crop, or not; return the image and the short side that it is resized to next."""

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        def scaled(side: int) -> int:
            return round(side * self.config.short_side / 800)

        if torch.rand((), generator=generator) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if torch.rand((), generator=generator) < 0.5:
            image = _resized(image, scaled((400, 500, 600)[draw(0, 2)]), None)
            low, high = scaled(384), scaled(600)
            width = draw(min(low, image.width), min(high, image.width))
            height = draw(min(low, image.height), min(high, image.height))
            top, left = draw(0, image.height - height), draw(0, image.width - width)
            image = image.crop((left, top, left + width, top + height))
        sides = range(480, 801, 32)
        return image, scaled(sides[draw(0, len(sides) - 1)])


def _resized(image: Image.Image, side: int, max_long_side: int | None) -> Image.Image:
    height, width = resized_hw(image.height, image.width, side, max_long_side)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def paper_collate(images: Sequence[Tensor]) -> PaperBatch:
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    pixels = torch.zeros(len(images), 3, height, width)
    padding_mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for row, image in enumerate(images):
        pixels[row, :, : image.shape[1], : image.shape[2]].copy_(image)
        padding_mask[row, : image.shape[1], : image.shape[2]] = False
    return PaperBatch(pixels, padding_mask)


class Contest:
    """The paper's pipeline, ours, and ours with its images in memory, on one split at one size."""

    def __init__(self, data: Path, split: str, short_side: int, num_images: int) -> None:
        self.train, self.short_side = split == "train", short_side
        self.config = DataConfig(
            short_side=short_side, max_long_side=round(short_side * 5 / 3), batch_size=BATCH_SIZE, num_workers=0
        )
        opened = open_dataset(data)
        annotations, _ = read_split(opened, "train")
        transform = (TrainTransform if self.train else EvalTransform)(self.config, IMAGENET_MEAN, IMAGENET_STD)
        root = opened.splits["train"].image_root
        self.plain, self.cached = (
            DetectionDataset(annotations, root, opened.classes, transform, seed=0, drop_crowds=True) for _ in range(2)
        )
        self.plain.images = self.cached.images = annotations.images[:num_images]
        self.cached.cache = ImageCache(self.cached.images)
        self.cached.cache.reserve()
        self.paper = PaperDataset(self.plain, self.config, train=self.train)
        for index in range(len(self.cached)):
            self.cached[0, index]
        self._check()

    @property
    def name(self) -> str:
        return f"{'training' if self.train else 'evaluation'}, {self.short_side}"

    def _check(self) -> None:
        for index in range(min(8, len(self.plain))):
            theirs = self._batch("paper", [(1, index)])
            ours, kept = (collate([dataset[1, index]]).images.pixels for dataset in (self.plain, self.cached))
            grey_levels = (theirs - ours).abs().max() * 255 * min(IMAGENET_STD)
            if grey_levels > 5 or not torch.equal(ours, kept):
                raise SystemExit(f"image {index}: the pipelines differ by {grey_levels:.1f} grey levels")

    def _batch(self, which: str, keys: Sequence[Key]) -> Tensor:
        if which == "paper":
            return paper_collate([self.paper[key] for key in keys]).pixels
        dataset = self.cached if which == "cached" else self.plain
        batch = collate([dataset[key] for key in keys])
        return batch.images.pixels if which == "ours, floats" else batch.pixels

    def alone(self, rounds: int) -> dict[str, list[float]]:
        """Return seconds an image of each batch, in one thread, the pipelines in turn."""
        seconds: dict[str, list[float]] = {"paper": [], "ours": [], "ours, floats": [], "cached": []}
        for epoch in range(1, rounds + 1):
            for keys in EvalBatches(len(self.plain), BATCH_SIZE):
                for which, taken in seconds.items():
                    began = time.perf_counter()
                    self._batch(which, [(epoch, index) for _, index in keys])
                    taken.append((time.perf_counter() - began) / len(keys))
        return seconds

    def through_workers(self, num_workers: int, rounds: int) -> dict[str, list[float]]:
        """Return seconds an image of whole epochs, with workers that are already there, the pipelines in turn."""
        config = self.config.model_copy(update={"num_workers": num_workers})
        batches = EvalBatches(len(self.plain), BATCH_SIZE)
        theirs: DataLoader[Tensor] = DataLoader(
            self.paper, batch_sampler=batches, collate_fn=paper_collate, num_workers=num_workers,
            persistent_workers=True, worker_init_fn=_one_thread,
        )  # fmt: skip
        ours, kept = EvalLoader(self.plain, config), EvalLoader(self.cached, config)
        epochs: dict[str, Callable[[], Iterable[object]]] = {
            "paper": lambda: theirs,
            "ours": lambda: ours,
            "ours, floats": lambda: (batch.images for batch in ours),
            "cached": lambda: kept,
        }
        seconds: dict[str, list[float]] = {name: [] for name in epochs}
        for number in range(rounds + 1):
            for name, epoch in epochs.items():
                began = time.perf_counter()
                for _ in epoch():
                    pass
                if number > 0:  # the first one starts the workers
                    seconds[name].append((time.perf_counter() - began) / len(self.plain))
        ours.close()
        kept.close()
        return seconds


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def _ratio(seconds: dict[str, list[float]], name: str) -> str:
    """Return by how much a pipeline is faster than the paper's: the median over pairs."""
    return f"{median(theirs / ours for theirs, ours in zip(seconds['paper'], seconds[name], strict=True)):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--short-sides", type=int, nargs="+", default=[800, 320])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64, help="at most, the first ones of the train split")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for split in ("train", "val"):
        for side in arguments.short_sides:
            contest = Contest(arguments.data, split, side, arguments.images)
            for num_workers in arguments.workers:
                if num_workers == 0:
                    seconds = contest.alone(arguments.rounds)
                else:
                    seconds = contest.through_workers(num_workers, arguments.rounds)
                ratios = [_ratio(seconds, name) for name in ("ours, floats", "ours", "cached")]
                per_second = [f"{1 / median(seconds[name]):.0f}" for name in ("paper", "ours", "cached")]
                rows.append([contest.name, num_workers, *per_second, *ratios])
    headers = [
        "transform, short side",
        "workers",
        "paper images/s",
        "bytes",
        "cached bytes",
        "floats x",
        "bytes x",
        "cached bytes x",
    ]
    print(table(headers, rows))


if __name__ == "__main__":
    main()

"""Compiled against plain training steps, interleaved in one process.

    python benchmarks/compilation.py [--backbone resnet18] [--short-side 256] [--rounds 6]

Forward, loss and backward of a dela-detr on random images of four sizes. The first step of each size, which compiles,
is timed apart. Ratios below 1 mean that compiling pays.
"""

from __future__ import annotations

import argparse
import copy
import time
from statistics import median

import torch

from core.annotations.records import Category
from core.assembly import Assembly, assemble
from core.config.schema import Config
from core.models.detector import Detector
from core.structures import ImageBatch, Target
from core.trainer.compilation import compile_model
from runs import table

CLASSES = [Category(number, f"class {number}") for number in range(5)]
ASPECTS = ((1.0, 1.25), (1.25, 1.0), (1.125, 1.5), (1.0, 1.625))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    config = Config.model_validate(
        {
            "model": {"name": "dela-detr", "dropout": 0.0},
            "backbone": {"name": arguments.backbone, "weights": None},
            "label_augmentation": {"repeat_time": 2},
        }
    )
    assembly = assemble(config, CLASSES)
    compiled = copy.deepcopy(assembly.model)
    compile_model(compiled)
    batches = [make_batch(arguments.short_side, aspect) for aspect in ASPECTS]
    first = [step(assembly, compiled, *batch) for batch in batches]
    ratios, plain_seconds = [], []
    for _ in range(arguments.rounds):
        for batch in batches:
            plain_seconds.append(step(assembly, assembly.model, *batch))
            ratios.append(step(assembly, compiled, *batch) / plain_seconds[-1])
    headers = ["backbone", "short side", "plain s/step", "compiled / plain", "from to", "s to compile"]
    row = [
        arguments.backbone, arguments.short_side, f"{median(plain_seconds):.2f}", f"{median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}", f"{sum(first):.0f}",
    ]  # fmt: skip
    print(table(headers, [row]))


def make_batch(short_side: int, aspect: tuple[float, float]) -> tuple[ImageBatch, list[Target]]:
    height, width = (round(short_side * part) for part in aspect)
    generator = torch.Generator().manual_seed(height * width)
    images = ImageBatch(
        torch.randn(2, 3, height, width, generator=generator),
        torch.zeros(2, height, width, dtype=torch.bool),
        torch.tensor([[height, width]] * 2),
    )
    boxes = torch.rand(2, 4, 4, generator=generator) * 0.4 + 0.2
    return images, [Target(boxes[row], torch.arange(4)) for row in range(2)]


def step(assembly: Assembly, model: Detector, images: ImageBatch, targets: list[Target]) -> float:
    """Return the seconds of a step without its update."""
    model.train()
    began = time.perf_counter()
    assembly.criterion(model(images), targets, torch.Generator().manual_seed(0)).total.backward()
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds


if __name__ == "__main__":
    main()

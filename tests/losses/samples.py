"""Small random outputs and targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.models.specs import DecoderFamily
from core.structures import ModelOutput, Target

NUM_CLASSES = 3


def random_output(family: DecoderFamily, num_layers: int, num_images: int, num_queries: int, seed: int) -> ModelOutput:
    generator = torch.Generator().manual_seed(seed)
    num_logits = NUM_CLASSES + (family is DecoderFamily.DETR)
    shape = (num_layers, num_images, num_queries)
    logits = torch.randn(*shape, num_logits, generator=generator)
    return ModelOutput(logits, torch.randn(*shape, 4, generator=generator).sigmoid())


def random_targets(counts: Sequence[int], seed: int) -> list[Target]:
    generator = torch.Generator().manual_seed(seed + 1)
    return [
        Target(
            torch.rand(count, 4, generator=generator) * 0.8 + 0.1,
            torch.randint(NUM_CLASSES, (count,), generator=generator),
        )
        for count in counts
    ]

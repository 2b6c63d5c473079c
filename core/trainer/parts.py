"""The parts that a step is made of: labels, forward and backward pass of each, which come out the same once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.assembly import Assembly
from core.datasets.batches import Batch
from core.datasets.seeds import derived_generator, derived_seed
from core.errors import DivergedError
from core.losses.criterion import Normalisers
from core.structures import Target
from core.trainer.optimizer import clip_gradients
from core.trainer.precision import MixedPrecision


@dataclass(frozen=True)
class Part:
    """A micro-batch with the labels that it is trained on.

    Attributes:
        batch: images, and labels as annotated.
        targets: labels as augmented.
        normalisers: of this part alone.
        place: its number among all parts of the step, in all processes.
    """

    batch: Batch
    targets: Sequence[Target]
    normalisers: Normalisers
    place: int


class Passes:
    """Forward and backward passes of parts; the same step, part and weights give the same numbers.

    Args:
        assembly: its model is on the device, its criterion goes there.
        device: where the model is.
        precision: of the passes.
    """

    def __init__(self, assembly: Assembly, device: torch.device, precision: MixedPrecision) -> None:
        self.model = assembly.model
        self.criterion = assembly.criterion.to(device)
        self.config = assembly.config
        self.device = device
        self.precision = precision

    def prepare(self, batch: Batch, place: int, step: int) -> Part:
        """Repeat the labels image by image, so that no part depends on what else is in it.

        Args:
            batch: on any device.
            place: see `Part`.
            step: optimizer steps done before.
        """
        num_queries = self.config.model.num_queries
        targets: list[Target] = []
        for image_id, target in zip(batch.image_ids, batch.targets, strict=True):
            generator = derived_generator("labels", self.config.run.seed, step, image_id)
            targets += self.criterion.augment([target], num_queries, generator)
        return Part(batch, targets, Normalisers.of(targets, num_queries), place)

    def run(self, part: Part, normalisers: Normalisers, step: int) -> dict[str, Tensor]:
        """Add a part's gradients; return its loss as `loss`, first, and its terms by name, all on the device.

        Args:
            part: from `prepare`.
            normalisers: of the whole step.
            step: optimizer steps done before.

        Raises:
            DivergedError: a matching cost is not a finite number; nothing was differentiated.
        """
        # Dropout is the one thing that draws from the global generator. Seeded by step and part, it is the same
        # for a run that was resumed here, and whatever else has drawn from it meanwhile.
        torch.manual_seed(derived_seed("dropout", self.config.run.seed, step, part.place))
        images = part.batch.to(self.device).images
        with self.precision.autocast():
            output = self.model(images)
        losses = self.criterion(output, part.targets, normalisers=normalisers)
        self.precision.backward(losses.total)
        return {"loss": losses.total.detach(), **losses.terms}

    def bad_gradients(self) -> list[str]:
        """Return the parameters whose gradients are not finite numbers, in the model's order."""
        named = [(name, each.grad) for name, each in self.model.named_parameters() if each.grad is not None]
        are_finite = torch.stack([gradient.isfinite().all() for _, gradient in named]).tolist() if named else []
        return [name for (name, _), is_finite in zip(named, are_finite, strict=True) if not is_finite]

    def blame(self, parts: Sequence[Part], normalisers: Normalisers, step: int) -> tuple[Part, list[str]] | None:
        """Make passes again, one by one, to find the part whose gradients are not finite; they are lost afterwards.

        Returns:
            The first such part and its parameters, or None: it happened in another process, or did not happen again.
        """
        for part in parts:
            self.model.zero_grad(set_to_none=True)
            try:
                self.run(part, normalisers, step)
            except DivergedError:
                return part, []
            # The norm may be too large a number where none of the gradients is.
            if not math.isfinite(clip_gradients(self.model.parameters(), 0.0).item()):
                return part, self.bad_gradients()
        return None

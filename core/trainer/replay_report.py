"""What is told of a step that was made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import DivergedError
from core.trainer.watching import Sighting


@dataclass(frozen=True)
class Extent:
    """How large the numbers of a tensor are.

    Attributes:
        largest: absolute value of those that are finite; None where none is.
        num_not_finite: how many are not.
    """

    largest: float | None
    num_not_finite: int


@dataclass(frozen=True)
class Survey:
    """How large the numbers of many tensors are.

    Attributes:
        largest: absolute value of those that are finite; None where none is.
        largest_in: the name of the tensor that it is in.
        not_finite: names of the tensors with numbers that are not finite, in the model's order.
    """

    largest: float | None
    largest_in: str | None
    not_finite: tuple[str, ...]


@dataclass(frozen=True)
class ImageReplay:
    """What an image came to, alone.

    Attributes:
        image_id: as in the annotation file.
        file_name: likewise.
        fault: what was not finite; None if nothing was.
        losses: loss and terms by name; empty where it did not come to them.
    """

    image_id: int
    file_name: str
    fault: str | None
    losses: dict[str, float]


@dataclass(frozen=True)
class PartReplay:
    """What a part of the step came to.

    Attributes:
        image_ids: of its images.
        fault: what was not finite; None if nothing was.
        losses: loss and terms by name; empty where the matching failed.
        is_identical: whether those are to the last bit the run's own; None where these are not known, or where another
            kind of device or other settings computed.
        grad_norm: of its gradients; None where the matching failed.
        gradients: of its parameters; empty where the matching failed.
        extents: of images, annotated boxes, logits and predicted boxes.
        sighting: where numbers ceased to be finite; of a part without a fault, nothing.
        images: each of several, alone, if the part has a fault. Batch norm that trains, and dropout, see another batch.
    """

    image_ids: tuple[int, ...]
    fault: str | None
    losses: dict[str, float]
    is_identical: bool | None
    grad_norm: float | None
    gradients: Survey
    extents: dict[str, Extent]
    sighting: Sighting
    images: tuple[ImageReplay, ...]


@dataclass(frozen=True)
class ReplayReport:
    """What a step came to when it was made again.

    Attributes:
        diverges: whether a number is not finite again.
        step: its number, from 1.
        epoch: likewise.
        reason: what was not finite in the run.
        rank: of the process that met it.
        num_processes: of the run.
        device: that computed now.
        precision: of this replay.
        grad_norm: of the gradients of all these parts together; None where a matching failed.
        weights: of the model, and its statistics, before the step.
        parts: of the step, as far as they were kept.
    """

    diverges: bool
    step: int
    epoch: int
    reason: str
    rank: int
    num_processes: int
    device: str
    precision: str
    grad_norm: float | None
    weights: Survey
    parts: tuple[PartReplay, ...]

    def error(self) -> DivergedError | None:
        """Return what to tell if it has diverged again."""
        if not self.diverges:
            return None
        faults = [part for part in self.parts if part.fault]
        reason = faults[0].fault if faults else f"the norm of the gradients is {self.grad_norm}"
        image_ids = ", ".join(str(image_id) for part in faults or self.parts for image_id in part.image_ids)
        message = f"{reason} again, at step {self.step} (image ids {image_ids})"
        return DivergedError(message, where="loss", hint=self._hint(faults))

    def _hint(self, faults: Sequence[PartReplay]) -> str:
        blamed = [image for part in faults for image in part.images if image.fault]
        if self.weights.not_finite:
            return "its weights were not finite before the step: go on from an earlier checkpoint"
        if self.precision != "float32":
            return "see whether --set run.precision=float32 cures it"
        if len(blamed) == 1 and sum(len(part.images) for part in faults) > 1:
            return f"look at the annotations of image id {blamed[0].image_id}, {blamed[0].file_name}"
        return "go on from the last checkpoint with a lower optimizer.lr, and look at the annotations of these images"

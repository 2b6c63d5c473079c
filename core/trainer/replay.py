"""A step that could not be made, made again from its file to see what breaks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.assembly import assemble
from core.config.schema import Config
from core.datasets.batches import Batch
from core.device import place
from core.errors import DivergedError
from core.models.weights import load_into
from core.structures import ModelOutput
from core.trainer.compilation import compile_model, compiled_code_unused
from core.trainer.device import reproducible
from core.trainer.diverged import DivergedStep, KeptPart
from core.trainer.failures import non_finite_terms
from core.trainer.optimizer import build_optimizer, clip_gradients
from core.trainer.parts import Part, Passes
from core.trainer.precision import MixedPrecision
from core.trainer.replay_report import Extent, ImageReplay, PartReplay, ReplayReport, Survey
from core.trainer.watching import Sighting, watched


def replay(kept: DivergedStep, config: Config, device: torch.device) -> ReplayReport:
    """Make a step again as far as it concerns the process that kept it, but for the update.

    On a CPU the numbers are those of the run, to the last bit, if neither configuration nor kind of device differ.

    Args:
        kept: the step.
        config: of the step, or one that computes the same model in another way.
        device: where to compute.

    Raises:
        CheckpointError: the weights do not fit the model.
        UsageError: this kind of device cannot train in this precision.
        MachineError: the device cannot do it, or an optional package is missing.
    """
    with reproducible(device), _threads(kept.num_threads if device.type == kept.device == "cpu" else None):
        return _Replay(kept, config, device).run()


@dataclass(frozen=True)
class _Made:
    """What passes came to: what is not finite, loss and terms, norm of the gradients; see `PartReplay`."""

    fault: str | None
    losses: dict[str, float]
    grad_norm: float | None


class _Replay:
    """A replay under way: the model and what makes passes of it, as at the step."""

    def __init__(self, kept: DivergedStep, config: Config, device: torch.device) -> None:
        self.kept = kept
        self.config = config
        self.device = device
        assembly = assemble(config, kept.classes, load_backbone_weights=False)
        load_into(assembly.model, kept.weights)
        self.model = assembly.model
        place(self.model, device)
        build_optimizer(self.model, config.optimizer)  # which freezes what the run has frozen
        self.precision = _precision_of(kept, config, device)
        self.passes = Passes(assembly, device, self.precision)
        self.model.train()
        assembly.criterion.train()
        if config.run.compile:
            compile_model(self.model)

    def run(self) -> ReplayReport:
        weights = {name: tensor for name, tensor in self.model.state_dict().items() if tensor.is_floating_point()}
        survey = _survey(weights)  # before the passes, which change statistics
        parts = tuple(self._replay_part(part) for part in self.kept.parts)
        has_fault = any(part.fault for part in parts)
        norm = parts[0].grad_norm if len(parts) == 1 else self._norm_of_all(parts)
        return ReplayReport(
            diverges=has_fault or (norm is not None and not math.isfinite(norm)),
            step=self.kept.step + 1,
            epoch=self.kept.epoch + 1,
            reason=self.kept.reason,
            rank=self.kept.rank,
            num_processes=self.kept.world_size,
            device=str(self.device),
            precision=self.config.run.precision,
            grad_norm=norm,
            weights=survey,
            parts=parts,
        )

    def _replay_part(self, kept: KeptPart) -> PartReplay:
        part = self.passes.prepare(kept.batch, kept.place, self.kept.step)
        extents = {"images": _extent(part.batch.images.pixels)}
        boxes = [target.boxes_cxcywh_norm.flatten() for target in part.batch.targets]
        extents["annotated boxes"] = _extent(torch.cat(boxes))
        with self._answers_measured(extents):
            made = self._make(part)
        gradients = {name: each.grad for name, each in self.model.named_parameters() if each.grad is not None}
        survey = _survey(gradients)
        has_fault = made.fault is not None
        return PartReplay(
            image_ids=part.batch.image_ids,
            fault=made.fault,
            losses=made.losses,
            is_identical=_are_identical(made.losses, kept.losses) if kept.losses and self._is_as_it_was() else None,
            grad_norm=made.grad_norm,
            gradients=survey,
            extents=extents,
            sighting=self._watch(part) if has_fault else Sighting(),
            images=self._each_alone(part) if has_fault and len(part.batch) > 1 else (),
        )

    def _is_as_it_was(self) -> bool:
        section = self.config.run.model_copy(update={"device": self.kept.config.run.device})
        same_settings = self.config.model_copy(update={"run": section}) == self.kept.config
        return same_settings and self.device.type == self.kept.device

    def _make(self, part: Part) -> _Made:
        """Make a part's passes alone."""
        self.model.zero_grad(set_to_none=True)
        try:
            losses = self.passes.run(part, self.kept.normalisers, self.kept.step)
        except DivergedError as error:
            return _Made(f"{error.message} ({error.where})", {}, None)
        numbers = {name: value.float().item() for name, value in losses.items()}
        terms = {name: value for name, value in numbers.items() if name != "loss"}
        faults = non_finite_terms(numbers["loss"], terms)
        norm = self._norm()
        if not faults and not math.isfinite(norm):
            faults = [f"the norm of the gradients is {norm}"]
        return _Made(", ".join(faults) or None, numbers, norm)

    def _norm(self) -> float:
        """Scale the gradients back as the step does, and return their norm."""
        scale = self.precision.scaler.get_scale()
        for parameter in self.model.parameters():
            if parameter.grad is not None and scale != 1:
                parameter.grad.mul_(1 / scale)
        return clip_gradients(self.model.parameters(), 0.0).item()

    def _norm_of_all(self, parts: Sequence[PartReplay]) -> float | None:
        """Return the norm of the gradients of all parts together, as they are in the step; None if there are none."""
        if any(part.grad_norm is None for part in parts):
            return None
        self.model.zero_grad(set_to_none=True)
        for kept in self.kept.parts:
            part = self.passes.prepare(kept.batch, kept.place, self.kept.step)
            self.passes.run(part, self.kept.normalisers, self.kept.step)
        return self._norm()

    def _watch(self, part: Part) -> Sighting:
        """Make a part's passes once more, as written, and look at every module on the way."""
        as_written = compiled_code_unused() if self.config.run.compile else contextlib.nullcontext()
        with as_written, watched(self.model) as sighting, contextlib.suppress(DivergedError):
            self.passes.run(part, self.kept.normalisers, self.kept.step)
        return sighting

    def _each_alone(self, part: Part) -> tuple[ImageReplay, ...]:
        images = []
        for row in range(len(part.batch)):
            batch = _row(part.batch, row)
            try:
                made = self._make(self.passes.prepare(batch, part.place, self.kept.step))
            except ValueError:  # batch norm on a map of a single cell
                made = _Made(None, {}, None)
            images.append(ImageReplay(batch.image_ids[0], batch.file_names[0], made.fault, made.losses))
        return tuple(images)

    @contextlib.contextmanager
    def _answers_measured(self, extents: dict[str, Extent]) -> Iterator[None]:
        """Note how large logits and boxes of the model are."""

        def measure(_module: Any, _arguments: Any, output: ModelOutput) -> None:
            extents["logits"] = _extent(output.logits)
            extents["predicted boxes"] = _extent(output.boxes_cxcywh_norm)

        hook = self.model.register_forward_hook(measure)
        try:
            yield
        finally:
            hook.remove()


def _precision_of(kept: DivergedStep, config: Config, device: torch.device) -> MixedPrecision:
    """Return the precision with the loss scaled as it was; not at all where it was not."""
    precision = MixedPrecision(config.run.precision, device)
    state = dict(kept.precision)
    if not state["scaler"] and precision.scaler.is_enabled():
        state["scaler"] = precision.scaler.state_dict() | {"scale": 1.0}
    precision.load_state_dict(state)
    return precision


def _extent(values: Tensor) -> Extent:
    finite = values.detach()[values.isfinite()].abs()
    return Extent(finite.max().item() if len(finite) else None, values.numel() - len(finite))


def _survey(tensors: Mapping[str, Tensor]) -> Survey:
    extents = {name: _extent(values) for name, values in tensors.items()}
    with_any = {name: extent.largest for name, extent in extents.items() if extent.largest is not None}
    largest_in = max(with_any, key=with_any.__getitem__, default=None)
    not_finite = tuple(name for name, extent in extents.items() if extent.num_not_finite)
    return Survey(None if largest_in is None else with_any[largest_in], largest_in, not_finite)


def _row(batch: Batch, row: int) -> Batch:
    """Return one image of a batch, padded as in it."""
    only = slice(row, row + 1)
    return replace(
        batch,
        pixels=batch.pixels[only],
        sizes_hw=batch.sizes_hw[only],
        targets=batch.targets[only],
        image_ids=batch.image_ids[only],
        original_sizes_hw=batch.original_sizes_hw[only],
        file_names=batch.file_names[only],
    )


def _are_identical(ours: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    # By their texts, which tell all finite numbers apart, and one NaN from no other.
    return {name: repr(value) for name, value in ours.items()} == {name: repr(value) for name, value in theirs.items()}


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads, as more or fewer of them add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

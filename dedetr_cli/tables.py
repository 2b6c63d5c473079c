"""Tables that more than one command prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from dedetr_cli.output import table

if TYPE_CHECKING:
    from core.api import (
        ClassResult,
        EvaluationResult,
        Extent,
        ImageReplay,
        LoadReport,
        PartReplay,
        ReplayReport,
        Survey,
        TrainingPlan,
    )

_MAX_CLASSES = 30
_MAX_PARAMETERS = 5

_LABELS = {
    "AP": "AP (IoU 0.50:0.95)", "AP50": "AP50", "AP75": "AP75", "APs": "AP small", "APm": "AP medium",
    "APl": "AP large", "AR1": "AR, 1 detection", "AR10": "AR, 10 detections", "AR100": "AR, 100 detections",
    "ARs": "AR small", "ARm": "AR medium", "ARl": "AR large",
}  # fmt: skip


def evaluation_tables(result: EvaluationResult | None, title: str) -> list[Table]:
    """Return the 12 COCO numbers and AP by class; nothing where nothing was evaluated."""
    if result is None:
        return []
    stats = table(
        title, ("measure", "value"), [(_LABELS.get(name, name), value) for name, value in result.stats.items()]
    )
    shown, which = _shown_classes(result.per_class)
    rows = [(row.category.name, row.ap, row.ap50, row.num_boxes) for row in shown]
    return [stats, table(which, ("class", "AP", "AP50", "boxes"), rows)]


def _shown_classes(per_class: Sequence[ClassResult]) -> tuple[Sequence[ClassResult], str]:
    """Return all classes; where they are too many to read, the best and the worst; and a title that says so."""
    if len(per_class) <= _MAX_CLASSES:
        return per_class, "by class"
    scored = sorted((row for row in per_class if row.ap is not None), key=lambda row: row.ap or 0.0, reverse=True)
    if len(scored) <= _MAX_CLASSES:
        return scored, f"by class, best first: the {len(scored)} of {len(per_class)} that have boxes"
    half = _MAX_CLASSES // 2
    title = f"by class: the {half} best and the {half} worst of {len(scored)} that have boxes (--json has all)"
    return [*scored[:half], *scored[-half:]], title


def weights_table(report: LoadReport) -> Table:
    """Return what a detector took over from a weight file, part by part; `loaded` counts tensors taken as they are."""
    headers = ("part", "loaded", "adapted", "from the file", "new")
    rows = [(part.name, part.num_loaded, part.num_adapted, part.taken, part.fresh) for part in report.parts]
    made = table("starting weights, in tensors", headers, rows)
    made.columns[0].no_wrap = True
    return made


def plan_table(plan: TrainingPlan) -> Table:
    """Return what a training run would do."""
    frozen = plan.num_parameters - plan.num_trained_parameters
    rows = [
        ("model", f"{plan.model}, {plan.backbone}"),
        *([("to be fetched", plan.weights_to_fetch)] if plan.weights_to_fetch else []),
        ("parameters", f"{plan.num_parameters:,}" + (f", of them {frozen:,} frozen" if frozen else "")),
        ("classes", f"{len(plan.classes)}: {', '.join(plan.classes)}"),
        ("training images", plan.num_train_images),
        ("validation images", plan.num_val_images),
        ("images of a step", plan.batch_size),
        ("processes", plan.num_processes),
        ("micro-batches of each", f"{plan.num_micro_batches} of up to {plan.largest_micro_batch} images"),
        ("steps of an epoch", plan.steps_per_epoch),
        ("steps in all", f"{plan.num_steps}, in {plan.num_epochs} epochs"),
        *((f"learning rate, {name}", f"{rate:g}") for name, rate in plan.learning_rates.items()),
        ("schedule", plan.schedule),
        ("precision", plan.precision),
        ("device", plan.device),
        ("run folder", plan.run_folder or f"runs/{plan.model}-TIME"),
    ]
    return table("what would be trained (nothing was written)", ("setting", "value"), rows)


def replay_tables(report: ReplayReport) -> list[Table]:
    """Return what a step came to when it was made again: as a whole, then part by part."""
    which = f"process {report.rank} of {report.num_processes}" if report.num_processes > 1 else "the whole step"
    rows = [
        ("in the run", report.reason),
        ("again", "yes" if report.diverges else "no"),
        ("made by", f"{report.device}, in {report.precision}"),
        ("of it", which),
        ("norm of the gradients", _number(report.grad_norm)),
        *_survey_rows("weight", report.weights),
    ]
    made = [_narrow(table(f"step {report.step}, in epoch {report.epoch}, made again", ("what", "was seen"), rows))]
    for part in report.parts:
        made += _part_tables(part)
    return made


def _part_tables(part: PartReplay) -> list[Table]:
    sighting = part.sighting
    first = sighting.output
    if first is not None and not sighting.was_input_finite:
        first += ", whose input was not finite already"
    same = "the run's, to the last bit" if part.is_identical else "not the run's"
    rows = [
        ("not finite", part.fault or "nothing"),
        *([("its numbers", same)] if part.is_identical is not None else []),
        *([("first output not finite", first)] if first else []),
        *([("first gradient not finite", f"at the output of {sighting.gradient}")] if sighting.gradient else []),
        *([("made NaN in the backward pass", sighting.operation)] if sighting.operation else []),
        *(_survey_rows("gradient", part.gradients) if part.losses else []),
        *((f"largest of {name}", _extent(extent)) for name, extent in part.extents.items()),
        *((name, _number(value)) for name, value in part.losses.items()),
    ]
    title = f"image ids {', '.join(map(str, part.image_ids))}"
    made = [_narrow(table(title, ("what", "was seen"), rows))]
    if part.images:
        alone = [
            (image.image_id, image.file_name, _number(image.losses.get("loss")), _fault_of(image))
            for image in part.images
        ]
        made.append(_narrow(table("each image alone", ("id", "file", "loss", "not finite"), alone)))
    return made


def _fault_of(image: ImageReplay) -> str:
    """Return what is not finite of an image alone, in a few words: the part has told the rest."""
    if image.fault is None:
        return "nothing"
    return image.fault if image.losses else "the matching cost"


def _narrow(made: Table) -> Table:
    """Let all columns stand left, as they are texts, and long ones take lines."""
    for column in made.columns:
        column.justify = "left"
        column.overflow = "fold"
    return made


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _survey_rows(of: str, survey: Survey) -> list[tuple[str, str]]:
    largest = "none is finite" if survey.largest is None else f"{_number(survey.largest)}, in {survey.largest_in}"
    return [(f"largest {of}", largest), (f"{of}s not finite", _named(survey.not_finite))]


def _named(names: Sequence[str]) -> str:
    """Count names, and show the first few."""
    more = f", and {len(names) - _MAX_PARAMETERS} more" if len(names) > _MAX_PARAMETERS else ""
    return f"{len(names)}: {', '.join(names[:_MAX_PARAMETERS])}{more}" if names else "none"


def _extent(extent: Extent) -> str:
    bad = f"; {extent.num_not_finite} not finite" if extent.num_not_finite else ""
    return f"{_number(extent.largest) or 'none is finite'}{bad}"

"""Tables that more than one command prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from dedetr_cli.output import table

if TYPE_CHECKING:
    from core.api import ClassResult, EvaluationResult, LoadReport, TrainingPlan

_MAX_CLASSES = 30

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

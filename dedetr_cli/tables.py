"""Tables that more than one command prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from dedetr_cli.output import table

if TYPE_CHECKING:
    from core.api import EvaluationResult

_LABELS = {
    "AP": "AP (IoU 0.50:0.95)", "AP50": "AP50", "AP75": "AP75", "APs": "AP small", "APm": "AP medium",
    "APl": "AP large", "AR1": "AR, 1 detection", "AR10": "AR, 10 detections", "AR100": "AR, 100 detections",
    "ARs": "AR small", "ARm": "AR medium", "ARl": "AR large",
}  # fmt: skip


def evaluation_tables(result: EvaluationResult | None, title: str) -> list[Table]:
    """Return the 12 COCO numbers and the AP of every class; nothing where nothing was evaluated."""
    if result is None:
        return []
    stats = table(
        title, ("measure", "value"), [(_LABELS.get(name, name), value) for name, value in result.stats.items()]
    )
    rows = [(row.category.name, row.ap, row.ap50, row.num_boxes) for row in result.per_class]
    return [stats, table("by class", ("class", "AP", "AP50", "boxes"), rows)]

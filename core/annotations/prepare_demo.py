"""The demo set, as `prepare-data` without a source writes it."""

from __future__ import annotations

from pathlib import Path

from core.annotations import demo
from core.annotations.prepare_report import PrepareReport, class_names, notes_of, report_splits
from core.annotations.prepared import write_dataset
from core.annotations.staging import replaced_notes, require_replaceable, staged
from core.errors import DataError


def prepare_demo(out: Path, images_out: Path | None = None, seed: int = 0) -> PrepareReport:
    """Draw the demo set into `out`, whole or not at all, and a few unlabelled pictures.

    Args:
        out: the folder to make; replaced if an earlier `prepare` made it, and nothing else was put into it.
        images_out: where the unlabelled pictures go; by default `images` beside `out`.
        seed: of the drawings.

    Raises:
        UsageError: `out` is a folder that `prepare-data` did not make.
        MachineError: `out` cannot be written.
    """
    require_replaceable(out, None)
    notes = ["the demo set: drawn, not photographed; each run draws the same pictures"]
    replaced = replaced_notes(out)
    with staged(out) as stage:
        splits = demo.draw_demo_splits(stage / "images", seed)
        write_dataset(stage, "demo", splits, sources=[f"drawn by dedetr, seed {seed}"], recipe=demo.RECIPE)
    images_out = images_out or out.absolute().parent / "images"
    unlabelled: Path | None = images_out
    try:
        num_unlabelled = len(demo.draw_unlabelled(images_out, seed))
        notes.append(f"{num_unlabelled} unlabelled pictures to try `predict` on are in {images_out}")
    except DataError:
        unlabelled = None
        notes.append(f"{images_out} holds files of yours and was left alone: no unlabelled demo pictures written")
    notes += [*notes_of(splits), *replaced]
    return PrepareReport(
        out, "demo", "demo", class_names(splits), report_splits(splits), tuple(notes), unlabelled, demo.RECIPE
    )

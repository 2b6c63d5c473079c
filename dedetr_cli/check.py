"""`prepare-data --check`: all faults, statistics and advice of a data set, printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from dedetr_cli.output import as_dict, print_json, print_line, print_note, stdout, table
from dedetr_cli.progress import make_counter

if TYPE_CHECKING:
    from core.api import BoxFormat, CheckReport, SplitStatistics


def check_data(
    source: Path,
    source_format: str | None,
    *,
    one_based: bool,
    boxes: BoxFormat,
    allow_unlisted: bool,
    strict: bool,
    pictures: Path | None,
    as_json: bool,
) -> None:
    """Check a data set and print what was found.

    Raises:
        DataError: something cannot be used; all of it was printed before.
    """
    from core import api

    with make_counter("checked") as counter:
        outcome = api.check_data(
            source,
            source_format=source_format,
            one_based=one_based,
            boxes=boxes,
            allow_unlisted=allow_unlisted,
            strict=strict,
            pictures=pictures,
            on_images=counter,
            on_note=print_note,
        )
    error = outcome.error()
    if as_json:
        print_json("prepare-data", {"check": as_dict(outcome.report), "pictures": list(outcome.pictures)}, error)
    else:
        _print(outcome.report)
        for path in outcome.pictures:
            print_line(str(path))
    for note in outcome.report.notes:
        print_note(note)
    if error is not None:
        raise error


def _print(report: CheckReport) -> None:
    if report.faults:
        stdout().print(_fault_table(report))
    else:
        print_line(f"no faults in {report.path}")
    if report.statistics:
        stdout().print(_split_table(report.statistics))
        stdout().print(_class_table(report.statistics))
    for advice in report.advice:
        print_line(f"{advice.topic}: {advice.text}" + (f" ({advice.flag})" if advice.flag else ""))


def _fault_table(report: CheckReport) -> Table:
    rows = [
        (fault.code or "-", fault.severity, fault.count, ": ".join(filter(None, (fault.where, fault.message))))
        for fault in report.faults
    ]
    made = table(f"{report.path}, {report.format or 'of no known format'}", ("code", "what", "count", "first"), rows)
    made.columns[1].justify = made.columns[3].justify = "left"
    return made


def _split_table(statistics: Mapping[str, SplitStatistics]) -> Table:
    rows = [(split, one.num_images, one.num_empty_images, *_objects(one)) for split, one in statistics.items()]
    headers = ("split", "images", "empty", "boxes", "an image", "at most", "median side, px", "small")
    return table("what can be used", headers, rows)


def _objects(one: SplitStatistics) -> tuple[object, ...]:
    if one.boxes is None or one.objects_per_image is None:
        return one.num_boxes, None, None, None, None
    objects, boxes = one.objects_per_image, one.boxes
    share = f"{boxes.num_small / one.num_boxes:.0%}"
    return one.num_boxes, f"{objects.mean:.1f}", round(objects.maximum), round(boxes.side_px.median), share


def _class_table(statistics: Mapping[str, SplitStatistics]) -> Table:
    counts = [{one.name: one.num_boxes for one in split.classes} for split in statistics.values()]
    names = dict.fromkeys(name for of_split in counts for name in of_split)  # splits may differ, which is a fault
    rows = [(name, *(of_split.get(name) for of_split in counts)) for name in names]
    return table("boxes by class", ("class", *statistics), rows)

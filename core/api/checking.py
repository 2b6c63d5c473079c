"""A data set, checked whole: every fault, what is in it, and what follows. Loads no PyTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.annotations.box_formats import BoxFormat
from core.annotations.checks.advice import TrainingSettings
from core.annotations.checks.report import CheckReport, check_source
from core.annotations.content import ReadOptions
from core.annotations.prepared import is_prepared, open_dataset
from core.api.common import OnImages, Say, count_nothing, say_nothing
from core.api.configuration import NO_PRESET, resolve_train_config
from core.config.schema import Config
from core.errors import DataError, DedetrError


@dataclass(frozen=True)
class CheckOutcome:
    """What a check found, and the pictures that were drawn of it."""

    report: CheckReport
    pictures: tuple[Path, ...] = ()

    def error(self) -> DataError | None:
        """Return the error that a command ends with; None where everything can be used."""
        first = next((fault for fault in self.report.faults if fault.severity == "error"), None)
        if first is None:
            return None
        others = self.report.num_errors - first.count
        message = f"{first.message}; {others} further faults" if others else first.message
        return DataError(message, where=first.where, hint=first.hint, code=first.code, places=first.places)


def check_data(
    source: Path,
    *,
    source_format: str | None = None,
    one_based: bool = False,
    boxes: BoxFormat = "xywh",
    allow_unlisted: bool = False,
    strict: bool = False,
    pictures: Path | None = None,
    on_images: OnImages = count_nothing,
    on_note: Say = say_nothing,
) -> CheckOutcome:
    """Find all faults of a source or a prepared data set, describe it, and advise.

    Args:
        source: a folder or file of any format that `prepare_data` reads, or a folder that it made.
        source_format: its format; by default it is recognised.
        one_based: box edges of Pascal VOC and CSV count pixels from 1.
        boxes: the format of boxes in COCO files, where it is not COCO's own.
        allow_unlisted: leave out annotations of images that a COCO file does not list.
        strict: boxes of zero size and pictures in two splits are errors, too.
        pictures: a folder to draw the statistics into.
        on_images: is told how many of how many looks at images are done.
        on_note: is told for which settings the advice is.

    Raises:
        UsageError: the format is not known, or the options do not fit it.
        MachineError: `pictures` cannot be written.
    """
    settings = _settings(_meant_config(source), on_note)
    report = check_source(
        source,
        source_format,
        ReadOptions(one_based=one_based, boxes=boxes, allow_unlisted=allow_unlisted, unpack=False),
        strict=strict,
        settings=settings,
        on_images=on_images,
    )
    drawn: list[Path] = []
    if pictures is not None and report.statistics:
        from core.visualization.dataset_statistics import draw_statistics

        drawn = draw_statistics(report, pictures)
    return CheckOutcome(report, tuple(drawn))


def _meant_config(source: Path) -> Config:
    """Return what `dedetr train` would take: the data set's recipe where it has one, else the defaults."""
    recipe = None
    if is_prepared(source):
        try:
            recipe = open_dataset(source).recipe
        except DedetrError:
            recipe = None  # what is wrong with it, the check says
    return resolve_train_config(preset=recipe or NO_PRESET, environment=os.environ).config


def _settings(config: Config, on_note: Say) -> TrainingSettings:
    policy = config.label_augmentation
    on_note(f"advice is for {config.model.name} with the settings that `dedetr train` would take now")
    return TrainingSettings(
        model=config.model.name,
        num_queries=config.model.num_queries,
        repeat_time=policy.repeat_time or 1,
        repeat_ratio=policy.repeat_ratio,
        short_side=config.data.short_side,
        max_long_side=config.data.max_long_side,
        batch_size=config.data.batch_size,
        epochs=config.schedule.epochs,
        sample_repeat=config.data.sample_repeat,
    )

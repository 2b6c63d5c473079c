"""Advice that follows from the numbers of a data set, and the flag to type."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.annotations.checks.statistics import ClassStatistics, SplitStatistics
from core.annotations.findings import NUM_EXAMPLES

FEW_TRAIN_BOXES = 10
FEW_VAL_BOXES = 50
FEW_VAL_BOXES_IN_ALL = 200
_LARGER_VAL = "put more images aside for val (`prepare-data --val 0.3`, of a source without lists of its own)"
MANY_EMPTY = 1 / 3
IMBALANCE = 50

COARSEST_STRIDE_PX = 32
"""From one token of the encoder to the next, in all models without `--dilation`."""
_LARGEST_SHORT_SIDE = 1333
_ENLARGED = 2
"""From how much enlarging on a smaller input is worth a word."""

_PAPER_IMAGES, _PAPER_BATCH, _PAPER_EPOCHS = 1182, 8, 50
"""The paper's shortest training: 1 % of COCO (core/config/paper.py)."""
_PAPER_STEPS = _PAPER_IMAGES // _PAPER_BATCH * _PAPER_EPOCHS
_PAPER_LARGEST_PART = 11828
"""Its largest part of COCO, 10 %."""


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training run that a data set has to fit.

    Attributes:
        model: its name.
        num_queries: objects that it can find in an image at most.
        repeat_time: how often label augmentation repeats each label; 1: never, or by a ratio.
        repeat_ratio: share of the queries that labels are repeated to fill; None: not by a ratio.
        short_side: of images in pixels.
        max_long_side: likewise, at most.
        batch_size: images of a step.
        epochs: of the whole run.
        sample_repeat: how often an image comes in an epoch.
    """

    model: str
    num_queries: int
    repeat_time: int
    repeat_ratio: float | None
    short_side: int
    max_long_side: int
    batch_size: int
    epochs: int
    sample_repeat: int = 1


@dataclass(frozen=True)
class Advice:
    """One thing to do or to bear in mind.

    Attributes:
        topic: a word or two.
        text: what was seen, and what follows from it.
        flag: what to type, or None where no flag mends it.
    """

    topic: str
    text: str
    flag: str | None = None


def advise(
    statistics: Mapping[str, SplitStatistics],
    settings: TrainingSettings | None,
    leaked: Mapping[str, int] | None = None,
) -> list[Advice]:
    """Return what follows from the numbers, the weightiest first.

    Args:
        statistics: by split name.
        settings: of the run that is meant; None: no advice on settings.
        leaked: by split name, how many of its pictures are in an earlier split too, as they are or little changed; of a
            single split, how many look like another one of it.
    """
    train, val = statistics.get("train"), statistics.get("val")
    is_only, leaks = len(statistics) == 1, leaked or {}
    advice = [
        _on_leak(split, leaks[split], one, is_only=is_only) for split, one in statistics.items() if leaks.get(split)
    ]
    advice += [] if val is None else _on_val(val)
    if train is not None and train.num_boxes:
        if settings is not None:
            advice += _on_queries(train, settings) + _on_input_size(train, settings)
            advice += _on_repeats(train, settings) + _on_steps(train, settings)
        advice += _on_classes(train, val) + _on_empty_images(train)
    return advice


def _on_leak(split: str, num: int, statistics: SplitStatistics, *, is_only: bool) -> Advice:
    share = f"{num} of {statistics.num_images} ({_percent(num / statistics.num_images)})"
    if is_only:
        text = (
            f"pictures of {split} that look like another of it: {share}; a val split drawn at random would share them"
        )
        return Advice("leakage", f"{text}: keep the pictures of one scene together", "--group")
    text = f"pictures of {split} that are in an earlier split too, as they are or little changed: {share}"
    return Advice(
        "leakage", f"{text}; what was seen before tells nothing of new pictures: remove them from one of the two"
    )


def _on_val(val: SplitStatistics) -> list[Advice]:
    advice: list[Advice] = []
    if val.num_boxes < FEW_VAL_BOXES_IN_ALL:
        text = f"val has {val.num_boxes} boxes in {val.num_images} images, so the AP is rough: {_noise(val.num_boxes)}"
        advice.append(Advice("val", f"{text}; {_LARGER_VAL}"))
    rare = [one for one in val.classes if 0 < one.num_boxes < FEW_VAL_BOXES]
    if rare and len(val.classes) > 1:
        fewest = min(one.num_boxes for one in rare)
        text = (
            f"classes with fewer than {FEW_VAL_BOXES} boxes in val, whose own AP is rough: {_names(rare)}; "
            f"with {fewest}, {_noise(fewest)}"
        )
        advice.append(Advice("val", text))
    return advice


def _noise(num_boxes: int) -> str:
    """Say how far a share of `num_boxes` boxes is uncertain."""
    if num_boxes == 0:
        return "nothing can be measured"
    return (
        f"the share of boxes found is uncertain by about ±{0.5 / math.sqrt(num_boxes):.2f} "
        "(one standard error, were boxes independent)"
    )


def _on_queries(train: SplitStatistics, settings: TrainingSettings) -> list[Advice]:
    num_objects = _most_objects(train)
    num_labels = num_objects * settings.repeat_time
    if num_labels <= settings.num_queries:
        return []
    repeats = f", repeated {settings.repeat_time} times {num_labels} labels" if settings.repeat_time > 1 else ""
    text = (
        f"an image of train holds {num_objects} objects{repeats}; {settings.model} has {settings.num_queries} queries"
    )
    return [Advice("queries", text, f"--num-queries {num_labels}")]


def _on_input_size(train: SplitStatistics, settings: TrainingSettings) -> list[Advice]:
    if train.boxes is None or train.boxes.side_resized_px is None or train.short_side_px is None:
        return []
    median = train.boxes.side_resized_px.median
    small = [
        one
        for one in train.classes
        if one.num_boxes >= FEW_TRAIN_BOXES and (one.median_side_resized_px or math.inf) < COARSEST_STRIDE_PX
    ]
    limit = f"{COARSEST_STRIDE_PX} px, the step of the encoder's grid"
    if small or median < COARSEST_STRIDE_PX:
        least = min([median, *(one.median_side_resized_px or math.inf for one in small)])
        wanted = _round_up(settings.short_side * COARSEST_STRIDE_PX / least)
        whose = f"the boxes of {_names(small)}" if small else "the boxes"
        text = (
            f"at a short side of {settings.short_side} px half of {whose} measure less than {limit} "
            f"(median {least:.0f} px)"
        )
        if wanted <= _LARGEST_SHORT_SIDE:
            return [Advice("input size", f"{text}; a larger input costs time and memory", _sides(wanted, settings))]
        return [Advice("input size", f"{text}; tiles cut from the images would show them larger")]
    own = train.short_side_px.median
    enough = max(
        _round_up(own), _round_up(settings.short_side * COARSEST_STRIDE_PX / train.boxes.side_resized_px.percentile_5)
    )
    if enough * _ENLARGED > settings.short_side:
        return []
    text = (
        f"the images, {own:.0f} px on their short side, are enlarged to {settings.short_side}; at {enough} px 95 % of "
        f"the boxes are still larger than {limit}, in {_percent((enough / settings.short_side) ** 2)} of the pixels"
    )
    return [Advice("input size", text, _sides(enough, settings))]


def _round_up(side: float) -> int:
    return math.ceil(side / COARSEST_STRIDE_PX) * COARSEST_STRIDE_PX


def _sides(short_side: int, settings: TrainingSettings) -> str:
    long_side = round(short_side * settings.max_long_side / settings.short_side)
    return f"--short-side {short_side} --max-long-side {long_side}"


def _on_repeats(train: SplitStatistics, settings: TrainingSettings) -> list[Advice]:
    repeats_labels = settings.repeat_time > 1 or settings.repeat_ratio is not None
    if repeats_labels or train.num_images > _PAPER_LARGEST_PART or 2 * _most_objects(train) > settings.num_queries:
        return []
    text = (
        f"{settings.model} sees each label once; for sets as small as this ({train.num_images} images; its parts of "
        f"COCO have up to {_PAPER_LARGEST_PART:,}) the paper adds label augmentation: each label twice, and NMS"
    )
    return [Advice("repeat factor", text, "--repeat-label 2 --nms")]


def _on_steps(train: SplitStatistics, settings: TrainingSettings) -> list[Advice]:
    per_epoch = max(1, train.num_images * settings.sample_repeat // settings.batch_size)
    num_steps = per_epoch * settings.epochs
    times = math.ceil(_PAPER_STEPS / num_steps)
    if times < 2:
        return []
    text = (
        f"{settings.epochs} epochs of {train.num_images} images are {num_steps:,} steps; the paper's shortest training "
        f"(1 % of COCO) has {_PAPER_STEPS:,}: if the AP still rises at the end, let every image come more often"
    )
    return [Advice("repeat factor", text, f"--sample-repeat {times * settings.sample_repeat}")]


def _on_classes(train: SplitStatistics, val: SplitStatistics | None) -> list[Advice]:
    advice: list[Advice] = []
    rare = [one for one in train.classes if 0 < one.num_boxes < FEW_TRAIN_BOXES]
    if rare:
        text = f"classes with fewer than {FEW_TRAIN_BOXES} boxes in train, too few to learn much from: {_names(rare)}"
        advice.append(Advice("classes", f"{text}; label more of them, or merge them"))
    if val is not None:
        num_train = {one.name: one.num_boxes for one in train.classes}
        num_val = {one.name: one.num_boxes for one in val.classes}
        unmeasured = [one for one in train.classes if one.num_boxes and not num_val.get(one.name)]
        if unmeasured:
            text = f"classes of train without a box in val, which have no AP: {_names(unmeasured)}"
            advice.append(Advice("classes", f"{text}; {_LARGER_VAL}"))
        unlearned = [one for one in val.classes if one.num_boxes and not num_train.get(one.name)]
        if unlearned:
            text = f"classes of val without a box in train, whose AP will be 0: {_names(unlearned)}"
            advice.append(Advice("classes", text))
    counted = sorted((one for one in train.classes if one.num_boxes), key=lambda one: one.num_boxes)
    if len(counted) > 1 and counted[-1].num_boxes >= IMBALANCE * counted[0].num_boxes:
        few, many = counted[0], counted[-1]
        text = (
            f"{many.name!r} has {many.num_boxes} boxes in train, {few.name!r} {few.num_boxes}: "
            "judge by the AP of each class, not by the mean alone"
        )
        advice.append(Advice("imbalance", text, "dedetr eval"))
    return advice


def _on_empty_images(train: SplitStatistics) -> list[Advice]:
    share = train.num_empty_images / train.num_images
    if share <= MANY_EMPTY:
        return []
    text = f"{_percent(share)} of the train images are without objects, and the model learns that they show none"
    return [Advice("empty images", f"{text}; make sure that they were labelled")]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _most_objects(statistics: SplitStatistics) -> int:
    return 0 if statistics.objects_per_image is None else int(statistics.objects_per_image.maximum)


def _names(classes: Sequence[ClassStatistics]) -> str:
    shown = ", ".join(repr(one.name) for one in classes[:NUM_EXAMPLES])
    more = len(classes) - NUM_EXAMPLES
    return f"{shown} and {more} more" if more > 0 else shown

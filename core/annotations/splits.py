"""Putting images aside for validation where a source has no lists of its own."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from core.annotations.checks.repeats import Picture
from core.annotations.content import Source, SplitContent
from core.annotations.findings import Findings, count_findings
from core.annotations.records import AnnotationSet
from core.errors import DataError, UsageError

DEFAULT_VAL_RATE = 0.2


@dataclass(frozen=True)
class SplitPlan:
    """How images are put aside where a source has no lists of its own.

    Attributes:
        val_rate: share of val, in (0, 1); None: 0.2 where the source has no val split.
        seed: of the choice.
    """

    val_rate: float | None = None
    seed: int = 0


def split_source(
    source: Source, plan: SplitPlan, repeats: Mapping[Picture, Picture]
) -> tuple[dict[str, SplitContent], list[str]]:
    """Return the splits with a val split, put aside from train where the source has none, and notes.

    Args:
        source: as read.
        plan: what to put aside.
        repeats: pictures and the equal one that each repeats; they stay on one side.

    Raises:
        UsageError: the plan asks for what the source has.
        DataError: there are too few images.
    """
    splits = dict(source.splits)
    if "val" in splits and plan.val_rate is not None:
        raise UsageError("the source has its own val split", where="--val", hint="leave it out")
    if "val" in splits or "train" not in splits:
        return splits, []
    rate = DEFAULT_VAL_RATE if plan.val_rate is None else plan.val_rate
    whole = splits.pop("train")
    same_as = {name: other for (split, name), (kept, other) in repeats.items() if split == kept == "train"}
    train, val = split_annotations(whole.annotations, rate, plan.seed, same_as)
    num_all = len(whole.annotations.images)
    notes = [
        f"the source has no val split: {len(val.images)} of {num_all} images were put aside for it, seed {plan.seed}"
    ]
    if same_as:
        notes.append(f"pictures that repeat another, kept on its side of the split: {len(same_as)}")
    # What only the reader saw is known for the whole alone.
    seen = whole.findings
    notes += Findings(
        zero_size_boxes=seen.zero_size_boxes,
        unlisted_annotations=seen.unlisted_annotations,
        difficult_boxes=seen.difficult_boxes,
    ).notes()
    parts = {
        name: SplitContent(part, whole.image_root, count_findings(part))
        for name, part in (("train", train), ("val", val))
    }
    return {**parts, **splits}, notes


def split_names(names: Collection[str], val_rate: float, seed: int) -> tuple[list[str], list[str]]:
    """Part names into train and val at random; the order of `names` has no influence.

    Args:
        names: distinct names, at least two.
        val_rate: the share of val, in (0, 1); each part gets at least one name.
        seed: equal names and seeds give equal parts.

    Returns:
        The names of train and of val, each sorted.

    Raises:
        UsageError: the rate is out of range.
        DataError: there are fewer than two names.
    """
    if not 0 < val_rate < 1:
        raise UsageError(f"the share must be between 0 and 1, is {val_rate:g}", where="--val")
    if len(names) < 2:
        raise DataError("a data set of fewer than two images cannot be split into train and val")
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - no secret
    num_val = min(max(round(val_rate * len(shuffled)), 1), len(shuffled) - 1)
    return sorted(shuffled[num_val:]), sorted(shuffled[:num_val])


def split_annotations(
    annotations: AnnotationSet, val_rate: float, seed: int, same_as: Mapping[str, str] | None = None
) -> tuple[AnnotationSet, AnnotationSet]:
    """Part an annotation set into train and val by file name, as `split_names` does; keeps the file's order.

    Args:
        annotations: all of the source.
        val_rate: the share of val.
        seed: of the choice.
        same_as: file names of repeated pictures and the one that each repeats; they go where that one goes, so
            that no picture is in both parts.
    """
    repeats = same_as or {}
    names = {image.file_name for image in annotations.images}
    _, val = split_names(names - repeats.keys(), val_rate, seed)
    chosen = set(val)
    val_names = {name for name in names if repeats.get(name, name) in chosen}
    return select_images(annotations, names - val_names), select_images(annotations, val_names)


def select_images(annotations: AnnotationSet, file_names: Collection[str]) -> AnnotationSet:
    """Return the images of these names with their annotations, and all categories."""
    images = tuple(image for image in annotations.images if image.file_name in file_names)
    image_ids = {image.id for image in images}
    return AnnotationSet(
        images,
        tuple(annotation for annotation in annotations.annotations if annotation.image_id in image_ids),
        annotations.categories,
    )

"""Putting images aside for validation where a source has no lists of its own."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping

from core.annotations.records import AnnotationSet
from core.errors import DataError, UsageError

DEFAULT_VAL_RATE = 0.2


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

"""Whether a data set can be opened: its annotations are read, and a few of its images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from core.annotations.images import check_image
from core.annotations.prepared import open_dataset, read_split
from core.doctor.check import Check
from core.errors import DataError
from core.files import join_within

_NUM_IMAGES = 4
"""Of a split, that are looked at: evenly spread, so that a moved or half-copied folder is noticed."""


def look_at_dataset(root: Path) -> Iterator[Check]:
    """Count the images and boxes of each split, and look at a few images.

    Raises:
        DataError: there is no data set.
    """
    dataset = open_dataset(root)
    classes = f"{len(dataset.classes)} classes, splits: {', '.join(dataset.splits)}"
    yield Check("data", "ok", f"{dataset.name} in {root}: {classes}", about_data=True)
    for name in dataset.splits:
        check_name = f"data, {name}"
        try:
            annotations, _ = read_split(dataset, name)
            images = annotations.images
            some = images[:: max(1, len(images) // _NUM_IMAGES)][:_NUM_IMAGES]
            for image in some:
                path = join_within(dataset.splits[name].image_root, image.file_name)
                check_image(path, (image.width, image.height))
        except DataError as error:
            hint = error.hint or f"`dedetr prepare-data {root} --check` names everything"
            yield Check(check_name, "fail", str(error), hint, about_data=True)
            continue
        counts = f"{len(images)} images, {len(annotations.annotations)} boxes"
        yield Check(check_name, "ok", f"{counts}; {len(some)} images looked at", about_data=True)

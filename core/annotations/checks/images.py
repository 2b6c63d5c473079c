"""Whether the images that annotations list are there and readable."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from core.annotations.faults import FaultLog
from core.annotations.findings import NUM_EXAMPLES
from core.annotations.images import check_image
from core.annotations.records import AnnotationSet, ImageRecord
from core.annotations.splits import select_images
from core.errors import DataError
from core.files import NamesWithin

Check = Callable[[Path, tuple[int, int]], None]
"""Checks an image file of a stated width and height, or raises a DataError; see `check_image`."""


def check_images(
    split: str,
    annotations: AnnotationSet,
    image_root: Path,
    log: FaultLog | None = None,
    check: Check = check_image,
) -> AnnotationSet:
    """Check that every listed image is there, can be read and has the stated size; most are not decoded for it.

    Args:
        split: its name, for messages.
        annotations: list the images.
        image_root: the folder that their names are below.
        log: is told of images that cannot be used; by default they are raised, the first few named.
        check: looks at one image.

    Returns:
        The annotations of the images that can be used.

    Raises:
        DataError: there are no images, or some cannot be used.
    """
    if not annotations.images:
        raise DataError(f"the {split} split has no images", where=str(image_root), code="F29")
    names = NamesWithin(image_root)
    faults = {
        image.file_name: fault
        for image in annotations.images
        if (fault := _fault_of(image_root, names, image, check)) is not None
    }
    if not faults:
        return annotations
    log = log or FaultLog()
    if log.drops or len(faults) == 1:
        for fault in faults.values():
            log.invalid(fault)
        if len(faults) == len(annotations.images):
            raise DataError(f"no image of the {split} split can be used", where=str(image_root), code="F29")
        return select_images(annotations, {image.file_name for image in annotations.images} - faults.keys())
    raise _all_faults(split, list(faults.values()), len(annotations.images), image_root)


def _all_faults(split: str, faults: Collection[DataError], num_images: int, image_root: Path) -> DataError:
    first = next(iter(faults))
    examples = [f"{Path(fault.where or '').name}: {fault.message}" for fault in faults][:NUM_EXAMPLES]
    more = "; ..." if len(faults) > NUM_EXAMPLES else ""
    return DataError(
        f"{len(faults)} of {num_images} {split} images cannot be used: {'; '.join(examples)}{more}",
        where=str(image_root),
        hint=first.hint,
        code=first.code,
        places=[fault.where or "" for fault in faults],
    )


def _fault_of(image_root: Path, names: NamesWithin, image: ImageRecord, check: Check) -> DataError | None:
    try:
        names.require(image.file_name)
        check(image_root / image.file_name, (image.width, image.height))
    except DataError as error:
        return error
    return None

"""Whether the images that annotations list are there and readable."""

from __future__ import annotations

from pathlib import Path

from core.annotations.findings import NUM_EXAMPLES
from core.annotations.images import check_image
from core.annotations.records import AnnotationSet, ImageRecord
from core.errors import DataError
from core.files import join_within


def check_images(split: str, annotations: AnnotationSet, image_root: Path) -> None:
    """Check that every listed image is there, can be read and has the stated size; most are not decoded for it.

    Args:
        split: its name, for messages.
        annotations: list the images.
        image_root: the folder that their names are below.

    Raises:
        DataError: there are no images, or some cannot be used; the first few are named.
    """
    if not annotations.images:
        raise DataError(f"the {split} split has no images", where=str(image_root))
    faults = [fault for image in annotations.images if (fault := _fault_of(image_root, image)) is not None]
    if len(faults) == 1:
        raise faults[0]
    if faults:
        shown = "; ".join(f"{Path(fault.where or '').name}: {fault.message}" for fault in faults[:NUM_EXAMPLES])
        more = "; ..." if len(faults) > NUM_EXAMPLES else ""
        raise DataError(
            f"{len(faults)} of {len(annotations.images)} {split} images cannot be used: {shown}{more}",
            where=str(image_root),
            hint=faults[0].hint,
        )


def _fault_of(image_root: Path, image: ImageRecord) -> DataError | None:
    try:
        check_image(join_within(image_root, image.file_name), (image.width, image.height))
    except DataError as error:
        return error
    return None

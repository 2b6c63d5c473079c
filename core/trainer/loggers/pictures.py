"""Pictures for loggers: a few validation images, what should be found in them and what was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from PIL import Image

from core.annotations.images import open_image
from core.annotations.records import ImageRecord
from core.datasets.dataset import DetectionDataset
from core.files import join_within
from core.structures import Detections
from core.visualization.draw import draw_detections, side_by_side

# Loggers keep a picture of every evaluation, so they are made for a look, not for the last pixel.
_MIN_SIDE, _MAX_SIDE = 400, 800
_MAX_NAME = 40


def draw_logged_images(
    validation_dataset: DetectionDataset,
    detections_by_image_id: Mapping[int, Detections],
    class_names: Sequence[str],
    num_images: int,
    threshold: float = 0.3,
) -> list[tuple[str, Image.Image]]:
    """Draw ground truth beside detections on images taken evenly from a data set, the same at every call.

    Args:
        validation_dataset: the images and their boxes.
        detections_by_image_id: of all its images, in pixels of the original images.
        class_names: by label.
        num_images: how many, if there are so many.
        threshold: the least score that is drawn.

    Returns:
        RGB pictures, each with a name made of the image's id and file name. Each half has a long side of at most 800
        pixels; small images are enlarged, so that labels can be read.

    Raises:
        DataError: an image cannot be read.
    """
    pictures: list[tuple[str, Image.Image]] = []
    for index in validation_dataset.taken_evenly(num_images):
        record = validation_dataset.images[index]
        path = join_within(validation_dataset.image_root, record.file_name)
        image, scale = _resized(open_image(path, (record.width, record.height)))
        boxes_xyxy_px, labels = validation_dataset.annotated(index)
        truth = draw_detections(image, boxes_xyxy_px * scale, labels, None, class_names)
        detections = detections_by_image_id[record.id]
        sure = detections.select(detections.scores >= threshold)
        found = draw_detections(image, sure.boxes_xyxy_px * scale, sure.labels, sure.scores, class_names)
        pictures.append((_name_of(record), side_by_side(truth, found, ("ground truth", "predictions"))))
    return pictures


def _resized(image: Image.Image) -> tuple[Image.Image, float]:
    """Return an image of a size to look at, and by what it was scaled."""
    scale = min(max(1.0, _MIN_SIDE / min(image.size)), _MAX_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC), scale


def _name_of(record: ImageRecord) -> str:
    """Return a name that no other image has and that a logger can make a file of."""
    return f"{record.id}_{PurePosixPath(record.file_name).stem[:_MAX_NAME]}"

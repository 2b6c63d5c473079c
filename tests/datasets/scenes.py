"""Small images with coloured rectangles, and annotations that say where they are."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.config.schema import DataConfig
from core.datasets.transforms import EvalTransform, TrainTransform
from core.models.backbone import IMAGENET_MEAN, IMAGENET_STD

# Ids with a gap, not in the order of the labels' meaning, as COCO has them.
CLASSES = (Category(3, "red"), Category(7, "green"), Category(90, "blue"))
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def make_scene(
    folder: Path,
    num_images: int = 6,
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    num_boxes: int | None = None,
    keep: bool = False,
) -> AnnotationSet:
    """Write PNG files with non-overlapping rectangles below `folder`; the third image has none.

    With `keep` files that are there already are left alone: another process may be reading them.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id in range(100, 100 + num_images):
        width, height = size or (rng.randint(60, 140), rng.randint(60, 140))
        picture = Image.new("RGB", (width, height))
        draw = ImageDraw.Draw(picture)
        columns = num_boxes if num_boxes is not None else (0 if image_id == 102 else rng.randint(1, 3))
        for column in range(columns):
            cell = width / columns
            left = int(cell * column + rng.uniform(1, cell * 0.2))
            right = int(cell * (column + 1) - rng.uniform(1, cell * 0.2))
            top, bottom = rng.randint(1, height // 3), rng.randint(height // 2, height - 2)
            category = rng.randrange(3)
            draw.rectangle((left, top, right - 1, bottom - 1), fill=COLORS[category])
            box = (float(left), float(top), float(right - left), float(bottom - top))
            annotation_id = len(annotations) + 1
            annotations.append(
                Annotation(annotation_id, image_id, CLASSES[category].id, box, box[2] * box[3], is_crowd=False)
            )
        name = f"{image_id:06d}.png"
        if not (keep and (folder / name).exists()):
            picture.save(folder / name)
        images.append(ImageRecord(image_id, name, width, height))
    return AnnotationSet(tuple(images), tuple(annotations), CLASSES)


def train_transform(config: DataConfig) -> TrainTransform:
    """The training transform for a backbone that was trained on ImageNet."""
    return TrainTransform(config, IMAGENET_MEAN, IMAGENET_STD)


def eval_transform(config: DataConfig) -> EvalTransform:
    """The evaluation transform for a backbone that was trained on ImageNet."""
    return EvalTransform(config, IMAGENET_MEAN, IMAGENET_STD)

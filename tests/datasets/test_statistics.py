from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from core.annotations.records import AnnotationSet, ImageRecord
from core.config.schema import LabelAugmentationConfig
from core.datasets.statistics import QueryDemand, count_images_over
from tests.datasets.scenes import CLASSES, make_scene

ONCE = LabelAugmentationConfig()


def _set(tmp_path: Path) -> AnnotationSet:
    """Three images with 2, 5 and 5 boxes; of the last one two are crowds."""
    parts = [make_scene(tmp_path / str(n), 1, size=(100, 50), num_boxes=n) for n in (2, 5, 5)]
    images, annotations = [], []
    for number, part in enumerate(parts):
        images.append(ImageRecord(number, "x.png", 100, 50))
        for row, annotation in enumerate(part.annotations):
            annotations.append(structs.replace(annotation, image_id=number, is_crowd=number == 2 and row < 2))
    return AnnotationSet(tuple(images), tuple(annotations), CLASSES)


@pytest.mark.parametrize(
    ("num_queries", "augmentation", "expected"),
    [
        (5, ONCE, QueryDemand(0, 5)),
        (4, ONCE, QueryDemand(1, 5)),
        (2, ONCE, QueryDemand(2, 5)),
        (9, LabelAugmentationConfig(repeat_time=2), QueryDemand(1, 10)),
        (10, LabelAugmentationConfig(repeat_time=2), QueryDemand(0, 10)),
        (3, LabelAugmentationConfig(repeat_time=2), QueryDemand(3, 10)),
        (4, LabelAugmentationConfig(repeat_ratio=1.0), QueryDemand(1, 5)),
        (100, LabelAugmentationConfig(repeat_ratio=0.25), QueryDemand(0, 5)),
    ],
)
def test_images_that_do_not_fit_are_counted(
    tmp_path: Path, num_queries: int, augmentation: LabelAugmentationConfig, expected: QueryDemand
) -> None:
    annotations = _set(tmp_path)
    assert count_images_over(annotations, num_queries, augmentation) == expected
    enough = count_images_over(annotations, expected.num_queries_needed, augmentation)
    assert enough.num_images_over == 0
    assert count_images_over(annotations, expected.num_queries_needed - 1, augmentation).num_images_over > 0


def test_an_empty_set_needs_no_query() -> None:
    assert count_images_over(AnnotationSet((), (), CLASSES), 10, ONCE) == QueryDemand(0, 0)

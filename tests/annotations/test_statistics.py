from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from core.annotations.checks.statistics import Histogram, SplitStatistics, objects_per_image, split_statistics
from core.annotations.records import Annotation, AnnotationSet, BoxXYWH, Category, ImageRecord

IMAGES = (ImageRecord(10, "a.png", 200, 100), ImageRecord(4, "b.png", 100, 400), ImageRecord(7, "c.png", 50, 50))
CLASSES = (Category(9, "last"), Category(2, "first"), Category(5, "none"))


def _set(*boxes: tuple[int, int, BoxXYWH], crowds: int = 0, areas: dict[int, float] | None = None) -> AnnotationSet:
    """Boxes as image id, class id and left, top, width, height; the last `crowds` of them are crowds."""
    annotations = tuple(
        Annotation(index, image, label, box, (areas or {}).get(index, box[2] * box[3]), index >= len(boxes) - crowds)
        for index, (image, label, box) in enumerate(boxes)
    )
    return AnnotationSet(IMAGES, annotations, CLASSES)


SOME = _set(
    (10, 9, (0, 0, 20, 20)),
    (10, 2, (150, -20, 100, 50)),  # reaches out by 50, and by 20
    (4, 9, (0, 0, 100, 100)),
    (4, 9, (0, 100, 40, 10)),
    (7, 5, (0, 0, 50, 50)),  # a crowd
    crowds=1,
)


def test_counts() -> None:
    found = split_statistics(SOME)
    assert (found.num_images, found.num_boxes, found.num_crowds, found.num_empty_images) == (3, 4, 1, 0)
    assert [(one.name, one.num_boxes, one.num_images) for one in found.classes] == [
        ("first", 1, 1),
        ("none", 0, 0),
        ("last", 3, 2),
    ]
    assert found.classes[1].median_side_px is None
    assert found.classes[2].median_side_px == 20
    assert found.classes[2].median_side_resized_px is None
    assert found.num_image_sizes == 3
    assert objects_per_image(SOME).tolist() == [2, 2, 0]
    objects, short, long = found.objects_per_image, found.short_side_px, found.long_side_px
    assert objects is not None
    assert (objects.minimum, objects.median, objects.maximum) == (0, 2, 2)
    assert objects.mean == pytest.approx(4 / 3)
    assert found.objects_histogram == Histogram((0, 1, 2, 3), (1, 0, 2))
    assert short is not None
    assert long is not None
    assert (short.minimum, short.maximum, long.minimum, long.maximum) == (50, 100, 50, 400)


def test_boxes_are_measured_inside_their_image() -> None:
    boxes = split_statistics(SOME).boxes
    assert boxes is not None
    assert boxes.side_px.maximum == 100
    assert boxes.side_px.mean == pytest.approx((20 + 1500**0.5 + 100 + 20) / 4)
    assert boxes.aspect_ratio.maximum == 4
    assert boxes.aspect_ratio.median == pytest.approx((1 + 50 / 30) / 2)
    assert boxes.area_share.minimum == pytest.approx(0.01)
    assert boxes.area_share.maximum == 0.25
    assert boxes.side_resized_px is None
    assert boxes.side_resized_histogram is None


def test_sizes_after_resizing_heed_the_longest_side() -> None:
    found = split_statistics(SOME, short_side=200, max_long_side=600)
    boxes = found.boxes
    assert boxes is not None
    assert boxes.side_resized_px is not None
    # The first image grows twice, the second, whose long side would be 800, one and a half times.
    assert boxes.side_resized_px.maximum == 150
    assert boxes.side_resized_px.mean == pytest.approx((40 + 2 * 1500**0.5 + 150 + 30) / 4)
    assert found.classes[2].median_side_resized_px == 40
    unlimited = split_statistics(SOME, short_side=200).boxes
    assert unlimited is not None
    assert unlimited.side_resized_px is not None
    assert unlimited.side_resized_px.maximum == 200


def test_sizes_as_coco_counts_them() -> None:
    areas = {0: 1023.0, 1: 1024.0, 2: 96.0**2, 3: 96.0**2 + 1}
    boxes = split_statistics(_set(*[(10, 9, (0, 0, 9, 9))] * 4, areas=areas)).boxes
    assert boxes is not None
    assert (boxes.num_small, boxes.num_medium, boxes.num_large) == (1, 2, 1)


def test_histograms_hold_every_box() -> None:
    boxes = split_statistics(_set((10, 9, (0, 0, 1e-4, 90)), (10, 9, (0, 0, 200, 1e-3)), (4, 2, (1, 1, 8, 8)))).boxes
    assert boxes is not None
    for histogram in (boxes.side_histogram, boxes.aspect_histogram):
        assert sum(histogram.counts) == 3
        assert len(histogram.edges) == len(histogram.counts) + 1
        assert list(histogram.edges) == sorted(histogram.edges)
    assert boxes.aspect_histogram.counts[0] == boxes.aspect_histogram.counts[-1] == 1


@pytest.mark.parametrize("most", [0, 1, 59, 60, 61, 119, 120, 500])
def test_crowded_images_share_bins(most: int) -> None:
    annotations = _set(*[(10, 9, (0, 0, 9, 9))] * most)
    histogram = split_statistics(annotations).objects_histogram
    assert histogram is not None
    assert sum(histogram.counts) == 3
    assert len(histogram.counts) <= 60
    assert histogram.edges[-2] <= most < histogram.edges[-1]
    assert histogram.counts[-1] >= 1


@pytest.mark.parametrize("annotations", [_set(), AnnotationSet((), (), CLASSES), AnnotationSet((), (), ())])
def test_a_split_without_boxes_or_images(annotations: AnnotationSet) -> None:
    found = split_statistics(annotations, 800, 1333)
    assert (found.num_images, found.num_boxes) == (len(annotations.images), 0)
    assert found.num_empty_images == found.num_images
    assert found.boxes is None
    assert (found.objects_per_image is None) == (not annotations.images)


def test_a_box_of_which_rounding_leaves_nothing() -> None:
    found = split_statistics(_set((10, 9, (150.0, 50.0, 1e-30, 20))))
    assert found.boxes is not None
    assert np.isfinite(found.boxes.aspect_ratio.mean)


def test_all_of_it_becomes_json() -> None:
    found: SplitStatistics = split_statistics(SOME, 800, 1333)
    written = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    assert written["classes"][2]["name"] == "last"
    assert written["boxes"]["side_px"]["maximum"] == 100

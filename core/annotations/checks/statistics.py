"""What a split holds, in numbers: classes, sizes and shapes of boxes, objects per image, sizes of images."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from core.annotations.records import AnnotationSet

SMALL_SIDE_PX, LARGE_SIDE_PX = 32, 96
"""COCO's limits: an object of less than 32^2 square pixels is small, one of more than 96^2 is large."""

_SIDE_EDGES = 2.0 ** np.arange(0, 12.25, 0.25)
_ASPECT_EDGES = 2.0 ** np.arange(-4, 4.25, 0.25)
_MAX_COUNT_BINS = 60
_LEAST_EXTENT_PX = 1e-6
"""A box may be so thin that rounding leaves nothing of it."""

_Numbers = NDArray[np.float64] | NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """Where a quantity's values lie."""

    minimum: float
    percentile_5: float
    median: float
    mean: float
    percentile_95: float
    maximum: float


@dataclass(frozen=True)
class Histogram:
    """How many values lie where.

    Attributes:
        edges: B + 1 rising numbers; bin b reaches from edge b up to edge b + 1. Values beyond are in the outer bins.
        counts: of each of the B bins.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ClassStatistics:
    """One class in a split; crowds do not count.

    Attributes:
        name: of the class.
        num_boxes: boxes of it.
        num_images: images with at least one.
        median_side_px: median of the boxes' sides, see `BoxStatistics.side_px`; None without boxes.
        median_side_resized_px: likewise after the images were resized.
    """

    name: str
    num_boxes: int
    num_images: int
    median_side_px: float | None
    median_side_resized_px: float | None


@dataclass(frozen=True)
class BoxStatistics:
    """Sizes and shapes of the boxes that training sees: without crowds, clipped to their images.

    Attributes:
        side_px: square root of width x height, in pixels of the image file.
        side_resized_px: likewise after the image was resized to the size of training; None where that is not known.
        area_share: of the image that a box covers, 0 ... 1.
        aspect_ratio: width / height.
        num_small: objects of an area below 32^2 pixels, as COCO's evaluation counts (of the mask where there is one).
        num_medium: between that and 96^2.
        num_large: above.
        side_histogram: of `side_px`, a quarter of an octave a bin.
        side_resized_histogram: of `side_resized_px`, or None.
        aspect_histogram: of `aspect_ratio`, a quarter of an octave a bin.
    """

    side_px: Spread
    side_resized_px: Spread | None
    area_share: Spread
    aspect_ratio: Spread
    num_small: int
    num_medium: int
    num_large: int
    side_histogram: Histogram
    side_resized_histogram: Histogram | None
    aspect_histogram: Histogram


@dataclass(frozen=True)
class SplitStatistics:
    """One split in numbers.

    Attributes:
        num_images: images listed and usable.
        num_boxes: without crowds.
        num_crowds: boxes around groups, which are not trained on.
        num_empty_images: images without any box, crowds included.
        classes: by rising id.
        boxes: None without boxes.
        objects_per_image: boxes without crowds; None without images.
        objects_histogram: of the same; None without images.
        short_side_px: shorter side of the images; None without images.
        long_side_px: longer side, likewise.
        num_image_sizes: how many different pairs of width and height.
    """

    num_images: int
    num_boxes: int
    num_crowds: int
    num_empty_images: int
    classes: tuple[ClassStatistics, ...]
    boxes: BoxStatistics | None
    objects_per_image: Spread | None
    objects_histogram: Histogram | None
    short_side_px: Spread | None
    long_side_px: Spread | None
    num_image_sizes: int


def split_statistics(
    annotations: AnnotationSet, short_side: int | None = None, max_long_side: int | None = None
) -> SplitStatistics:
    """Count and measure what a split holds.

    Args:
        annotations: of the split.
        short_side: of images in training, in pixels; None: sizes after resizing are left out.
        max_long_side: what the long side may reach at most; then the short side is smaller.
    """
    sizes, num_images = annotations.image_sizes_wh_px, len(annotations.images)
    is_crowd = _crowds(annotations)
    rows = annotations.image_rows[~is_crowd]
    starts = annotations.boxes_xywh_px[~is_crowd, :2]
    ends = np.minimum(starts + annotations.boxes_xywh_px[~is_crowd, 2:], sizes[rows])
    extents = np.maximum(ends - np.maximum(starts, 0), _LEAST_EXTENT_PX)
    sides = np.sqrt(extents.prod(axis=1))
    resized = None if short_side is None else sides * _scales(sizes, short_side, max_long_side)[rows]
    num_objects = objects_per_image(annotations)
    return SplitStatistics(
        num_images=num_images,
        num_boxes=len(rows),
        num_crowds=int(is_crowd.sum()),
        num_empty_images=num_images - len(np.unique(annotations.image_rows)),
        classes=_classes(annotations, ~is_crowd, rows, sides, resized),
        boxes=_boxes(annotations, ~is_crowd, extents, sizes[rows], sides, resized) if len(rows) else None,
        objects_per_image=_spread(num_objects),
        objects_histogram=_count_histogram(num_objects) if num_images else None,
        short_side_px=_spread(sizes.min(axis=1)) if num_images else None,
        long_side_px=_spread(sizes.max(axis=1)) if num_images else None,
        num_image_sizes=len(np.unique(sizes, axis=0)),
    )


def objects_per_image(annotations: AnnotationSet) -> NDArray[np.int64]:
    """Return the number of boxes of every image, crowds not counted, (M,)."""
    return np.bincount(annotations.image_rows[~_crowds(annotations)], minlength=len(annotations.images))


def _crowds(annotations: AnnotationSet) -> NDArray[np.bool_]:
    return np.fromiter(map(attrgetter("is_crowd"), annotations.annotations), np.bool_, len(annotations.annotations))


def _scales(sizes_wh_px: NDArray[np.float64], short_side: int, max_long_side: int | None) -> NDArray[np.float64]:
    """Return by how much each image is enlarged for training."""
    scales: NDArray[np.float64] = short_side / sizes_wh_px.min(axis=1)
    if max_long_side is not None:
        scales = np.minimum(scales, max_long_side / sizes_wh_px.max(axis=1))
    return scales


def _classes(
    annotations: AnnotationSet,
    is_counted: NDArray[np.bool_],
    rows: NDArray[np.int64],
    sides: NDArray[np.float64],
    resized: NDArray[np.float64] | None,
) -> tuple[ClassStatistics, ...]:
    categories = sorted(annotations.categories, key=attrgetter("id"))
    ids = np.fromiter(map(attrgetter("category_id"), annotations.annotations), np.int64, len(is_counted))[is_counted]
    labels = np.searchsorted(np.array([category.id for category in categories], dtype=np.int64), ids)
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(categories) + 1))
    found: list[ClassStatistics] = []
    for label, category in enumerate(categories):
        members = order[bounds[label] : bounds[label + 1]]
        found.append(
            ClassStatistics(
                category.name,
                len(members),
                len(np.unique(rows[members])),
                float(np.median(sides[members])) if len(members) else None,
                float(np.median(resized[members])) if resized is not None and len(members) else None,
            )
        )
    return tuple(found)


def _boxes(
    annotations: AnnotationSet,
    is_counted: NDArray[np.bool_],
    extents: NDArray[np.float64],
    image_sizes_wh_px: NDArray[np.float64],
    sides: NDArray[np.float64],
    resized: NDArray[np.float64] | None,
) -> BoxStatistics:
    areas = np.fromiter(map(attrgetter("area"), annotations.annotations), np.float64, len(is_counted))[is_counted]
    aspects = extents[:, 0] / extents[:, 1]
    num_small, num_large = int((areas < SMALL_SIDE_PX**2).sum()), int((areas > LARGE_SIDE_PX**2).sum())
    return BoxStatistics(
        side_px=_some_spread(sides),
        side_resized_px=_spread(resized) if resized is not None else None,
        area_share=_some_spread(sides**2 / image_sizes_wh_px.prod(axis=1)),
        aspect_ratio=_some_spread(aspects),
        num_small=num_small,
        num_medium=len(areas) - num_small - num_large,
        num_large=num_large,
        side_histogram=_histogram(sides, _SIDE_EDGES),
        side_resized_histogram=_histogram(resized, _SIDE_EDGES) if resized is not None else None,
        aspect_histogram=_histogram(aspects, _ASPECT_EDGES),
    )


def _spread(values: _Numbers) -> Spread | None:
    return _some_spread(values) if len(values) else None


def _some_spread(values: _Numbers) -> Spread:
    least, low, median, high, most = np.percentile(values, [0, 5, 50, 95, 100]).tolist()
    return Spread(least, low, median, float(values.mean()), high, most)


def _histogram(values: _Numbers, edges: NDArray[np.float64]) -> Histogram:
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _count_histogram(values: NDArray[np.int64]) -> Histogram:
    """Count whole numbers in bins of equal width, one for each number where they are few."""
    width = -(-(int(values.max()) + 1) // _MAX_COUNT_BINS)
    num_bins = int(values.max()) // width + 1
    return _histogram(values, np.arange(num_bins + 1, dtype=np.float64) * width)

"""What a data set asks of a model, counted before training begins."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.annotations.records import AnnotationSet
from core.config.schema import LabelAugmentationConfig
from core.datasets.dataset import pack_boxes
from core.label_augmentation import augmented_count


@dataclass(frozen=True)
class QueryDemand:
    """How the labels of a training split fit the queries of a model.

    Attributes:
        num_images_over: images with more (repeated) labels than queries; there some labels go untrained.
        num_queries_needed: the smallest number of queries that fits every image.
    """

    num_images_over: int
    num_queries_needed: int


def count_images_over(
    annotations: AnnotationSet, num_queries: int, augmentation: LabelAugmentationConfig
) -> QueryDemand:
    """Count the images whose labels, repeated as the augmentation says, exceed the queries.

    Crowds and boxes without an area inside the image do not count: training drops them.
    """
    _, _, first = pack_boxes(annotations, annotations.categories, drop_crowds=True)
    num_labels: list[int] = torch.diff(first).tolist()
    num_over = sum(augmented_count(num, augmentation, num_queries) > num_queries for num in num_labels)
    # A repeat ratio fills at most all queries: with as many queries as labels it repeats none.
    largest = max(num_labels, default=0)
    return QueryDemand(num_over, augmented_count(largest, augmentation, largest))

"""Parting and ordering images so that every part holds its share of every class.

The results depend on the contents, the seed and the order of what is given, and on nothing else: not on the machine,
nor on the version of Python. Chance comes from `random.Random(seed).shuffle` alone (the same since Python 3.2; tests
hold its results fast), sums are added in a fixed order, and no set is ever walked through.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from core.annotations.records import AnnotationSet

LabelCounts = Mapping[int, int]
"""How many boxes of every label an image, or a group of images, has; a label that it lacks does not stand there."""


@dataclass(frozen=True)
class Unit:
    """Images that stay together: how many they are, and what is in them."""

    size: int
    counts: LabelCounts


def count_labels(annotations: AnnotationSet) -> tuple[list[dict[int, int]], int]:
    """Count the boxes that can be trained on (crowds cannot) of every image.

    Returns:
        For every image the number of boxes by label, the position of a class among all by rising id; and the number C
        of classes. An image without a box has one of a label of its own, C, so that such images are parted as well.
    """
    category_ids = sorted(category.id for category in annotations.categories)
    num_classes = len(category_ids)
    counts: list[dict[int, int]] = [{} for _ in annotations.images]
    boxes = annotations.annotations
    if num_classes and boxes:
        ids = np.fromiter((annotation.category_id for annotation in boxes), np.int64, len(boxes))
        is_crowd = np.fromiter((annotation.is_crowd for annotation in boxes), np.bool_, len(boxes))
        labels = np.searchsorted(np.array(category_ids, np.int64), ids)
        keys, totals = np.unique((annotations.image_rows * num_classes + labels)[~is_crowd], return_counts=True)
        for key, total in zip(keys.tolist(), totals.tolist(), strict=True):
            row, label = divmod(key, num_classes)
            counts[row][label] = total
    return [found or {num_classes: 1} for found in counts], num_classes


def allot(units: Sequence[Unit], quotas: Sequence[int], seed: int, first: Sequence[int] = ()) -> list[int]:
    """Give every unit to a part, so that each part gets its share of the images and of every label's boxes.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, 2011): again and
    again the label with the fewest boxes left has its units given away. There a unit goes to the part that lacks most
    of this label. Here all its labels have a say, and images count as one more: it goes where the sum over labels and
    parts of (boxes - wanted boxes)^2 / wanted boxes, each label's in shares of its total, grows least. A part that has
    no room for a unit does not get it; a unit that none has room for goes where most room is left.

    Args:
        units: what is given away, each to one part; their order matters, so sort them.
        quotas: how many images every part is to have, at least 1; together all images. Exact where all units are
            single images.
        seed: of the order in which equally rare units come.
        first: positions of units that the first part gets before anything is given away.

    Returns:
        The position of every unit's part. No part is empty if there are as many units as parts.
    """
    order, chance = list(range(len(units))), random.Random(seed)  # noqa: S311 - no secret
    chance.shuffle(order)
    # What is large comes first, so that what is small can make up for it; only roughly, as chance is to have its say.
    order.sort(key=lambda row: (units[row].size, sum(units[row].counts.values()).bit_length()), reverse=True)
    of_label: dict[int, list[int]] = {}
    for row in order:
        for label in units[row].counts:
            of_label.setdefault(label, []).append(row)
    left = {label: sum(units[row].counts[label] for row in rows) for label, rows in sorted(of_label.items())}
    lots = _Lots(units, quotas, left)
    for row in first:
        lots.give(row, 0)
    while left:
        rarest = min(left, key=lambda label: (left[label], label))
        chance.shuffle(lots.turns)
        for row in of_label[rarest]:
            if lots.parts[row] < 0:
                lots.give(row, lots.best_part(units[row]))
        del left[rarest]
    return lots.parts


class _Lots:
    """Who has got what so far; keeps `left`, the number of boxes that are still to be given away by label."""

    def __init__(self, units: Sequence[Unit], quotas: Sequence[int], left: dict[int, int]) -> None:
        self._units, self._left, self._num_images = units, left, sum(quotas)
        self._totals = dict(left)
        self._shares = [quota / self._num_images for quota in quotas]
        self._room = list(quotas)
        self._needs = [{label: total * share for label, total in left.items()} for share in self._shares]
        self._is_empty = [True] * len(quotas)
        self._num_units_left = len(units)
        self.parts = [-1] * len(units)
        self.turns = list(range(len(quotas)))
        """In which order parts are asked: the first of equally good ones gets a unit."""

    def give(self, row: int, part: int) -> None:
        unit = self._units[row]
        self.parts[row] = part
        self._room[part] -= unit.size
        self._is_empty[part] = False
        self._num_units_left -= 1
        for label, count in unit.counts.items():
            self._needs[part][label] -= count
            self._left[label] -= count

    def best_part(self, unit: Unit) -> int:
        return max(self._open_to(unit), key=lambda part: self._gain(part, unit))

    def _open_to(self, unit: Unit) -> list[int]:
        empty = [part for part in self.turns if self._is_empty[part]]
        if empty and len(empty) >= self._num_units_left:
            return empty
        with_room = [part for part in self.turns if self._room[part] >= unit.size]
        return with_room or [self._room.index(max(self._room))]

    def _gain(self, part: int, unit: Unit) -> float:
        """Say by how much the distance shrinks if the part gets the unit."""
        gain = unit.size * (2 * self._room[part] - unit.size) / self._num_images**2
        for label, count in unit.counts.items():
            gain += count * (2 * self._needs[part][label] - count) / self._totals[label] ** 2
        return gain / self._shares[part]


def stratified_part(counts: Sequence[LabelCounts], num_classes: int, seed: int, length: int) -> list[int]:
    """Choose images that hold every class, if they are enough for that, in about the shares of the whole.

    Images that together have every class always come first: again and again the one that brings most missing classes,
    which makes few images, though not always the fewest. All images are halved by `allot` with these in the first half,
    and so on within the half in which the choice ends. Halves do not depend on the length, so that choices are nested.

    Args:
        counts: of every image, as `count_labels` gives them; their order matters.
        num_classes: as `count_labels` gives it.
        seed: of the choice.
        length: how many images are wanted.

    Returns:
        The positions of that many images.
    """
    cover = _cover(counts, num_classes, seed)
    place = {row: number for number, row in enumerate(cover)}
    chosen: list[int] = []
    block = list(range(len(counts)))
    while len(chosen) < length:
        if len(block) <= length - len(chosen):
            chosen += block
            break
        half = (len(block) + 1) // 2
        leading = sorted((number for number, row in enumerate(block) if row in place), key=lambda n: place[block[n]])
        units = [Unit(1, counts[row]) for row in block]
        parts = allot(units, (half, len(block) - half), seed, leading[:half])
        halves = [[row for row, part in zip(block, parts, strict=True) if part == wanted] for wanted in (0, 1)]
        if length - len(chosen) >= half:
            chosen += halves[0]
            block = halves[1]
        else:
            block = halves[0]
    return chosen


def _cover(counts: Sequence[LabelCounts], num_classes: int, seed: int) -> list[int]:
    """Return images that together have every class: again and again the one that brings most missing classes."""
    order = list(range(len(counts)))
    random.Random(seed).shuffle(order)  # noqa: S311 - no secret
    missing = {label for found in counts for label in found if label != num_classes}
    # An image never brings more than when it was last looked at, so that few are looked at again.
    waiting = [(-len(counts[row]), place, row) for place, row in enumerate(order)]
    heapq.heapify(waiting)
    cover: list[int] = []
    while missing:
        looked_at, place, row = heapq.heappop(waiting)
        brings = sum(label in missing for label in counts[row])
        if -looked_at > brings:
            heapq.heappush(waiting, (-brings, place, row))
        else:
            cover.append(row)
            missing.difference_update(counts[row])
    return cover


_MAX_LOOKED_AT = 32
"""So many images of a class are compared before one is taken; all of a large set would take minutes."""


def shots_order(counts: Sequence[LabelCounts], num_classes: int, seed: int, shots: int) -> list[int]:
    """Choose images until every class has that many boxes, or all of its boxes: one box more of each in every round.

    Of a class that still lacks a box, rarest first, comes the image that brings most boxes which are lacked, and fewest
    others. The images of K shots are the beginning of those of K + 1.

    Args:
        counts: of every image, as `count_labels` gives them; their order matters.
        num_classes: as `count_labels` gives it.
        seed: of the order in which images of a class come.
        shots: boxes of every class, at least.

    Returns:
        The positions of the images.
    """
    pool = _Pool(counts, seed)
    labels = [label for label in pool.totals if label != num_classes]
    labels.sort(key=lambda label: (pool.totals[label], label))
    for wanted in range(1, min(shots, max((pool.totals[label] for label in labels), default=0)) + 1):
        labels = [label for label in labels if pool.totals[label] >= wanted]

        def surplus(row: int, wanted: int = wanted) -> int:
            """Say how many more boxes of an image are not lacked than are."""
            lacked = {label: max(0, wanted - pool.taken[label]) for label in counts[row]}
            return sum(count - 2 * min(count, lacked[label]) for label, count in counts[row].items())

        for label in labels:
            while pool.taken[label] < wanted:
                pool.take(min(islice(pool.waiting(label), _MAX_LOOKED_AT), key=surplus))
    return pool.chosen


class _Pool:
    """Images by label in a seeded order, those that were chosen from them, and how many boxes these have."""

    def __init__(self, counts: Sequence[LabelCounts], seed: int) -> None:
        order = list(range(len(counts)))
        random.Random(seed).shuffle(order)  # noqa: S311 - no secret
        self._counts = counts
        self._of_label: dict[int, list[int]] = {}
        self._starts: Counter[int] = Counter()
        self._is_chosen = [False] * len(counts)
        self.totals: Counter[int] = Counter()
        self.taken: Counter[int] = Counter()
        self.chosen: list[int] = []
        for row in order:
            for label, count in counts[row].items():
                self._of_label.setdefault(label, []).append(row)
                self.totals[label] += count

    def take(self, row: int) -> None:
        self._is_chosen[row] = True
        self.chosen.append(row)
        for label, count in self._counts[row].items():
            self.taken[label] += count

    def waiting(self, label: int) -> Iterator[int]:
        """Yield the images of a label that were not chosen yet."""
        rows, chosen = self._of_label[label], self._is_chosen
        start = self._starts[label]
        while start < len(rows) and chosen[rows[start]]:
            start += 1
        self._starts[label] = start  # what is behind it is never walked through again
        return (rows[place] for place in range(start, len(rows)) if not chosen[rows[place]])

"""Parting images by file name into seeded parts of given sizes, so that what belongs together stays together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

from core.annotations.records import AnnotationSet
from core.annotations.stratification import Unit, allot, count_labels
from core.errors import DataError, UsageError

_Name = TypeVar("_Name", str, tuple[str, str])


class Pile:
    """Images to be parted, in units that stay together: repeats of one picture, and groups.

    Args:
        annotations: the images, and what is on them.
        same_as: file names of repeated pictures, and the one that each repeats; names of other images are ignored.
        group: a regular expression that finds the group in a file name; see `core.annotations.splits.SplitPlan`.

    Raises:
        UsageError: the pattern matches no file name.
    """

    def __init__(self, annotations: AnnotationSet, same_as: Mapping[str, str], group: str | None = None) -> None:
        self.num_images = len(annotations.images)
        num_of = Counter(image.file_name for image in annotations.images)
        names = sorted(num_of)
        self._same_as = {name: other for name, other in same_as.items() if name in num_of and other in num_of}
        self._group_of = _groups(names, group)
        self._names = joined(names, [*self._same_as.items(), *_neighbours(self._group_of)])
        counts: dict[str, Counter[int]] = {name: Counter() for name in names}
        for image, found in zip(annotations.images, count_labels(annotations)[0], strict=True):
            counts[image.file_name].update(found)
        self._units = [
            Unit(sum(num_of[name] for name in unit), _sum(counts[name] for name in unit)) for unit in self._names
        ]

    def put_aside(self, shares: Mapping[str, float], seed: int) -> dict[str, list[str]]:
        """Return the file names of train and of the named parts.

        Args:
            shares: of each part in all images, in (0, 1), together less than 1. The number of images is rounded, and
                at least 1; with groups it is near to that.
            seed: of the choice.

        Raises:
            DataError: there are fewer images, or units of them, than parts.
        """
        quotas = {name: max(1, round(Fraction(repr(rate)) * self.num_images)) for name, rate in shares.items()}
        while sum(quotas.values()) >= self.num_images > len(quotas):
            quotas[max(quotas, key=lambda name: quotas[name])] -= 1
        sizes = [self.num_images - sum(quotas.values()), *quotas.values()]
        parts = self.part(sizes, seed, f"into {' and '.join(in_order(['train', *shares]))}")
        return dict(zip(("train", *shares), parts, strict=True))

    def part(self, quotas: Sequence[int], seed: int, into: str) -> list[list[str]]:
        """Return the file names of each part; see `core.annotations.stratification.allot`.

        Args:
            quotas: how many images each part is to have, at least 1; together all.
            seed: of the choice.
            into: what the parts are, for the error.

        Raises:
            DataError: there are fewer images, or units of them, than parts.
        """
        if len(self._units) < len(quotas):
            num_units = len(self._units)
            in_groups = "" if num_units == self.num_images else f" in {num_units} group{'' if num_units == 1 else 's'}"
            raise DataError(
                f"{self.num_images} image{'' if self.num_images == 1 else 's'}{in_groups} cannot be split {into}",
                hint="equal pictures, and those of one group, stay together" if in_groups else "label more images",
            )
        parts: list[list[str]] = [[] for _ in quotas]
        for names, part in zip(self._names, allot(self._units, quotas, seed), strict=True):
            parts[part] += names
        return parts

    def notes(self) -> list[str]:
        """Return sentences for the user on what stays together."""
        notes: list[str] = []
        if self._same_as:
            notes.append(f"pictures that repeat another, kept on its side of the split: {len(self._same_as)}")
        if self._group_of:
            num_alone = sum(name not in self._group_of for unit in self._names for name in unit)
            alone = f"; images that the pattern does not match, each by itself: {num_alone}" if num_alone else ""
            notes.append(
                f"groups of images, each kept on one side: {len(dict.fromkeys(self._group_of.values()))}{alone}"
            )
        return notes


def even_quotas(num_images: int, num_parts: int) -> list[int]:
    """Return the sizes of parts that differ by at most one image, the larger ones first."""
    return [num_images // num_parts + (part < num_images % num_parts) for part in range(num_parts)]


def in_order(names: Iterable[str]) -> list[str]:
    """Return split names as they are listed: train, val, test, others."""
    order = ("train", "val", "test")
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _groups(names: Sequence[str], pattern: str | None) -> dict[str, str]:
    """Return the group of every name that the pattern matches."""
    if pattern is None:
        return {}
    search = re.compile(pattern).search
    found = {name: match for name in names if (match := search(name))}
    if not found:
        raise UsageError(
            f"the pattern {pattern!r} matches no file name",
            where="--group",
            hint=f"the first file name is {names[0]!r}" if names else None,
        )
    return {name: (match.group(1) if match.re.groups else None) or match.group(0) for name, match in found.items()}


def _neighbours(group_of: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return every name of a group with the group's first."""
    first: dict[str, str] = {}
    return [(name, first.setdefault(group, name)) for name, group in group_of.items()]


def joined(names: Sequence[_Name], pairs: Iterable[tuple[_Name, _Name]]) -> list[list[_Name]]:
    """Return the names in lists, the two of every pair in one; the order of the pairs has no influence."""
    parent = {name: name for name in names}

    def root(name: _Name) -> _Name:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for one, other in pairs:
        lower, higher = sorted((root(one), root(other)))
        parent[higher] = lower
    units: dict[_Name, list[_Name]] = {}
    for name in names:
        units.setdefault(root(name), []).append(name)
    return list(units.values())


def _sum(counts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for found in counts:
        total.update(found)
    return dict(sorted(total.items()))

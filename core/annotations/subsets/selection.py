"""What subset is asked for, what it is called, and which images it takes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from core.annotations.findings import NUM_EXAMPLES
from core.annotations.parting import even_quotas
from core.annotations.records import AnnotationSet
from core.annotations.stratification import Unit, allot, count_labels, shots_order, stratified_part
from core.errors import DataError, UsageError
from core.files import safe_name

RULE = "image ids sorted, shuffled by random.Random(seed), the first floor(rate * N), at least 1"

_FLAGS = {"rate": "--rate", "num_images": "--num-images", "shots": "--shots", "num_folds": "--folds"}


@dataclass(frozen=True)
class Selection:
    """Which part of the train split a subset is: of `rate`, `num_images`, `shots`, `fold`, `source` one is not None.

    Attributes:
        rate: the share of images, in (0, 1].
        num_images: the number of images.
        shots: the least number of boxes of every class.
        fold: from 1 to `num_folds`: all images but those of this fold, or (`held_out`) these alone.
        num_folds: how many folds there are.
        held_out: see `fold`.
        source: the name of the file that the image ids were taken from.
        stratified: whether the classes' shares are held near those of the whole, and not left to chance.
        seed: of the choice; None where nothing was drawn.
    """

    rate: float | None = None
    num_images: int | None = None
    shots: int | None = None
    fold: int | None = None
    num_folds: int | None = None
    held_out: bool = False
    source: str | None = None
    stratified: bool = False
    seed: int | None = 0

    def check(self) -> None:
        """Check that it can be carried out on some data set.

        Raises:
            UsageError: nothing or too much is asked for, or a number is out of range; names the flag.
        """
        asked = {name: getattr(self, name) for name in (*_FLAGS, "source") if getattr(self, name) is not None}
        flags = [_FLAGS.get(name, "--from-manifest") for name in asked]
        known = f"{', '.join(_FLAGS.values())} or --from-manifest"
        if not asked:
            raise UsageError("it is not said which part to take", where="--rate", hint=f"give one of {known}")
        if len(asked) > 1:
            raise UsageError(f"cannot be combined with {flags[0]}", where=flags[1], hint=f"give one of {known}")
        if self.stratified and self.rate is None and self.num_images is None:
            hint = "leave it out: folds are stratified anyway" if self.num_folds is not None else "leave it out"
            raise UsageError("only goes with --rate or --num-images", where="--stratify", hint=hint)
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"must not be negative, is {self.seed}", where="--seed")
        if self.seed is not None and self.source is not None:
            raise UsageError("nothing is drawn with --from-manifest", where="--seed", hint="leave it out")
        if self.rate is not None:
            check_rate(self.rate)
        for name, least in (("num_images", 1), ("shots", 1), ("num_folds", 2)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise UsageError(f"must be at least {least}, is {number}", where=_FLAGS[name])

    @property
    def short_name(self) -> str:
        """Its name in file names, by which `train --subset` finds it: 5pct, 100images-stratified, 10shot, fold1of5."""
        if self.rate is not None:
            name = f"{percent(self.rate)}pct"
        elif self.num_images is not None:
            name = f"{self.num_images}images"
        elif self.shots is not None:
            name = f"{self.shots}shot"
        elif self.fold is not None:
            name = f"fold{self.fold}of{self.num_folds}" + "-heldout" * self.held_out
        else:
            name = f"from-{safe_name((self.source or '').removesuffix('.json'))}"
        return f"{name}-stratified" if self.stratified else name

    @property
    def file_name(self) -> str:
        """What follows the name of the train file: 5pct-seed0.json."""
        return f"{self.short_name}.json" if self.seed is None else f"{self.short_name}-seed{self.seed}.json"

    @property
    def words(self) -> str:
        """Say what it is: "5 % of train, seed 0"."""
        if self.rate is not None:
            words = f"{percent(self.rate)} % of train"
        elif self.num_images is not None:
            words = f"{self.num_images} image{'' if self.num_images == 1 else 's'} of train"
        elif self.shots is not None:
            words = f"{self.shots} box{'' if self.shots == 1 else 'es'} or more of every class"
        elif self.fold is not None:
            words = f"fold {self.fold} of {self.num_folds}" if self.held_out else f"all folds but {self.fold}"
            words += "" if self.held_out else f" of {self.num_folds}"
        else:
            words = f"the images of {self.source}"
        stratified = ", stratified by class" if self.stratified else ""
        return f"{words}{stratified}" + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def rule(self) -> str:
        """Say how the images are found again, for the manifest."""
        module = "core.annotations.stratification"
        if self.source is not None:
            return "the image ids of a file"
        if self.shots is not None:
            return f"{module}.shots_order of the images by rising id"
        if self.fold is not None:
            return f"{module}.allot of the images by rising id to folds of equal size"
        if self.rate is not None and not self.stratified:
            return RULE
        order = f"{module}.stratified_part of the images by rising id"
        amount = "num_images" if self.rate is None else "floor(rate * N), at least 1"
        return (
            f"{order if self.stratified else 'image ids sorted, shuffled by random.Random(seed)'}, the first {amount}"
        )


def check_rate(rate: float, flag: str = "--rate") -> None:
    """Check that a share of images is in (0, 1].

    Raises:
        UsageError: it is not; names the flag.
    """
    if not 0 < rate <= 1:
        raise UsageError(f"the rate must be in (0, 1], is {rate:g}", where=flag, hint="0.05 is 5 %")


def percent(rate: float) -> str:
    """Write a rate in percent with all its digits and no more: 0.05 -> 5, 0.125 -> 12.5."""
    text = f"{Decimal(repr(rate)) * 100:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def select(selection: Selection, annotations: AnnotationSet) -> tuple[list[int], list[str]]:
    """Choose the images of a rate, a number or shots.

    Equal ids, labels and seeds give equal images, whatever their order, on any machine and version of Python.

    Args:
        selection: checked; not of a fold or a file.
        annotations: the train split.

    Returns:
        The ids of the images, and notes for the user.

    Raises:
        UsageError: more images are asked for than there are.
        DataError: shots are asked for, and there is no box.
    """
    num_all, seed = len(annotations.images), selection.seed or 0
    if selection.num_images is not None and selection.num_images > num_all:
        raise UsageError(
            f"{selection.num_images} images are asked for, the train split has {num_all}",
            where="--num-images",
            hint=f"ask for {num_all} at most",
        )
    length = _num_chosen(selection, num_all)
    if selection.shots is None and not selection.stratified:
        return random_order([image.id for image in annotations.images], seed)[:length], []
    rows = sorted(range(num_all), key=lambda row: annotations.images[row].id)
    unsorted_counts, num_classes = count_labels(annotations)
    counts = [unsorted_counts[row] for row in rows]
    if selection.shots is None:
        order, notes = stratified_part(counts, num_classes, seed, length), []
    else:
        order = shots_order(counts, num_classes, seed, selection.shots)
        if not order:
            raise DataError("the training images hold no box", where="--shots", hint="label some objects")
        notes = _notes_on_shots(selection.shots, counts, order, annotations)
    return [annotations.images[rows[place]].id for place in order], notes


def select_folds(annotations: AnnotationSet, num_folds: int, seed: int) -> list[list[int]]:
    """Part images into folds of equal size, each with its share of every class; see `stratification.allot`.

    Returns:
        The image ids of every fold.

    Raises:
        DataError: there are fewer images than folds.
    """
    num_all = len(annotations.images)
    if num_all < num_folds:
        raise DataError(f"{num_all} training images cannot be parted into {num_folds} folds", where="--folds")
    rows = sorted(range(num_all), key=lambda row: annotations.images[row].id)
    counts, _ = count_labels(annotations)
    parts = allot([Unit(1, counts[row]) for row in rows], even_quotas(num_all, num_folds), seed)
    folds: list[list[int]] = [[] for _ in range(num_folds)]
    for row, part in zip(rows, parts, strict=True):
        folds[part].append(annotations.images[row].id)
    return folds


def random_order(image_ids: Sequence[int], seed: int) -> list[int]:
    """Return distinct ids in a seeded order, which their own order does not influence."""
    shuffled = sorted(image_ids)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - no secret
    return shuffled


def _num_chosen(selection: Selection, num_all: int) -> int:
    if selection.num_images is not None:
        return selection.num_images
    # The decimal that was typed, not its binary neighbour: 0.29 of 100 images are 29.
    return num_all if selection.rate is None else max(1, int(Fraction(repr(selection.rate)) * num_all))


def _notes_on_shots(
    shots: int, counts: Sequence[dict[int, int]], order: Sequence[int], annotations: AnnotationSet
) -> list[str]:
    categories = sorted(annotations.categories, key=lambda category: category.id)
    totals, taken = ([0] * (len(categories) + 1) for _ in range(2))
    for row in range(len(counts)):
        for label, count in counts[row].items():
            totals[label] += count
    for row in order:
        for label, count in counts[row].items():
            taken[label] += count
    few = [
        f"{category.name} ({total})" for category, total in zip(categories, totals, strict=False) if 0 < total < shots
    ]
    notes: list[str] = []
    if few:
        more = f" and {len(few) - NUM_EXAMPLES} more" if len(few) > NUM_EXAMPLES else ""
        notes.append(f"all boxes were taken of classes with fewer than {shots}: {', '.join(few[:NUM_EXAMPLES])}{more}")
    surplus = sum(max(0, count - shots) for count in taken[:-1])
    if surplus:
        notes.append(f"images stay whole: they bring {surplus} boxes beyond {shots} of a class")
    return notes

"""Putting images aside for val and test where a source has no lists of its own, and parting them into folds."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import msgspec

from core.annotations.checks.repeats import Picture
from core.annotations.content import Source, SplitContent
from core.annotations.findings import NUM_EXAMPLES, Findings, count_findings
from core.annotations.parting import Pile, even_quotas, in_order
from core.annotations.records import AnnotationSet
from core.errors import UsageError

DEFAULT_VAL_RATE = 0.2

_FLAGS = {"val": "--val", "test": "--test"}


@dataclass(frozen=True)
class SplitPlan:
    """How images are put aside where a source has no lists of its own.

    Attributes:
        val_rate: share of val, in (0, 1); None: 0.2 where the source has no val split.
        seed: of the choice.
        test_rate: share of test, in (0, 1); None: a test split only where the source has one.
        group: a regular expression that is searched in every file name; its first group, or else all that it matches,
            names the group of the image, and images of one group stay on one side. None: every image for itself.
    """

    val_rate: float | None = None
    seed: int = 0
    test_rate: float | None = None
    group: str | None = None


def split_source(
    source: Source, plan: SplitPlan, repeats: Mapping[Picture, Picture]
) -> tuple[dict[str, SplitContent], list[str]]:
    """Return the splits of a source, with those that the plan puts aside from train, and notes.

    Val and test get their share of every class's boxes, and of the images without objects, as nearly as whole images
    and groups allow; see `core.annotations.stratification.allot`. Equal sources, plans and repeats give equal splits.

    Args:
        source: as read.
        plan: what to put aside.
        repeats: pictures and the equal one that each repeats; they stay on one side.

    Raises:
        UsageError: the plan asks for what the source has, or cannot be carried out.
        DataError: there are too few images, or groups of them.
    """
    _check_plan(source, plan)
    splits = dict(source.splits)
    shares = {name: rate for name, rate in (("val", plan.val_rate), ("test", plan.test_rate)) if rate is not None}
    if "train" in splits and "val" not in splits:
        shares = {"val": DEFAULT_VAL_RATE, **shares}
    if not shares:
        return splits, []
    _check_shares(shares)
    whole = splits.pop("train")
    same_as = {name: other for (split, name), (kept, other) in repeats.items() if split == kept == "train"}
    pile = Pile(whole.annotations, same_as, plan.group)
    parts = _parts(whole, pile.put_aside(shares, plan.seed))
    notes = _put_aside_notes(parts, shares, plan.seed)
    notes += pile.notes() + _notes_of_whole(whole) + _rare_classes(whole.annotations, parts)
    return {name: (parts | splits)[name] for name in in_order([*parts, *splits])}, notes


def parted_splits(source: Source, plan: SplitPlan, *, into_folds: bool = False) -> list[str]:
    """Return the names of the splits whose images `split_source`, or `fold_source`, would deal out anew."""
    if into_folds:
        return [name for name in ("train", "val") if name in source.splits]
    is_parted = plan.test_rate is not None or "val" not in source.splits
    return ["train"] if is_parted and "train" in source.splits else []


def fold_source(
    source: Source, num_folds: int, plan: SplitPlan, repeats: Mapping[Picture, Picture]
) -> list[tuple[dict[str, SplitContent], list[str]]]:
    """Part a source into folds: as many sets of splits, with every image in the val split of exactly one of them.

    The images of train, and of val where the source has it, are parted by class and group as `split_source` does it. A
    test split, the source's own or one that the plan puts aside first, is the same in every fold.

    Args:
        source: as read.
        num_folds: at least 2.
        plan: its `val_rate` must be None, as the folds say what val is.
        repeats: pictures and the equal one that each repeats; they stay in one fold.

    Returns:
        The splits of every fold, and notes on it.

    Raises:
        UsageError: the number or the plan cannot be used.
        DataError: there are fewer images, or groups of them, than folds.
    """
    if num_folds < 2:
        raise UsageError(f"there must be at least 2 folds, not {num_folds}", where="--folds")
    if plan.val_rate is not None:
        raise UsageError("each of the folds is the val split of one data set", where="--val", hint="leave it out")
    _check_plan(source, plan, parts_all=True)
    pooled, names = _pool({name: source.splits[name] for name in ("train", "val") if name in source.splits})
    same_as = {names[a]: names[b] for a, b in repeats.items() if a in names and b in names}
    own_test = {name: content for name, content in source.splits.items() if name not in ("train", "val")}
    pile = Pile(pooled.annotations, same_as, plan.group)
    common = [*pile.notes(), *_notes_of_whole(pooled)]
    if plan.test_rate is not None:
        _check_shares({"test": plan.test_rate})
        parts = _parts(pooled, pile.put_aside({"test": plan.test_rate}, plan.seed))
        common += _put_aside_notes(parts, ["test"], plan.seed)
        own_test["test"], pooled = parts["test"], parts["train"]
        pile = Pile(pooled.annotations, same_as, plan.group)
    folds = pile.part(even_quotas(pile.num_images, num_folds), plan.seed, f"into {num_folds} folds")
    result: list[tuple[dict[str, SplitContent], list[str]]] = []
    for number, val_names in enumerate(folds, start=1):
        others = [name for fold in folds if fold is not val_names for name in fold]
        parts = _parts(pooled, {"train": others, "val": val_names})
        note = (
            f"fold {number} of {num_folds}: {len(parts['val'].annotations.images)} of {pile.num_images} images are its "
            f"val split, seed {plan.seed}, stratified by class"
        )
        notes = [note, *common, *_rare_classes(pooled.annotations, parts)]
        result.append((parts | own_test, notes))
    return result


def select_images(annotations: AnnotationSet, file_names: Collection[str]) -> AnnotationSet:
    """Return the images of these names with their annotations, and all categories."""
    images = tuple(image for image in annotations.images if image.file_name in file_names)
    image_ids = {image.id for image in images}
    return AnnotationSet(
        images,
        tuple(annotation for annotation in annotations.annotations if annotation.image_id in image_ids),
        annotations.categories,
    )


def _check_plan(source: Source, plan: SplitPlan, *, parts_all: bool = False) -> None:
    for split, rate in (("val", plan.val_rate), ("test", plan.test_rate)):
        if rate is not None and split in source.splits:
            raise UsageError(f"the source has its own {split} split", where=_FLAGS[split], hint="leave it out")
        if rate is not None and "train" not in source.splits:
            raise UsageError("the source has no train split to put images aside from", where=_FLAGS[split])
    if plan.group is None:
        return
    try:
        re.compile(plan.group)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"not a regular expression: {error}",
            where="--group",
            hint="one that finds the group in a file name, such as '^([^_]+)_'",
        ) from error
    if not parts_all and plan.test_rate is None and ("val" in source.splits or "train" not in source.splits):
        raise UsageError(
            "the source has its own splits, so that nothing is put aside", where="--group", hint="leave it out"
        )


def _check_shares(shares: Mapping[str, float]) -> None:
    for name, rate in shares.items():
        if not 0 < rate < 1:
            raise UsageError(
                f"the share must be between 0 and 1, is {rate:g}", where=_FLAGS[name], hint="0.2 is every fifth image"
            )
    if sum(Fraction(repr(rate)) for rate in shares.values()) >= 1:
        given = " and ".join(f"{rate:g} for {name}" for name, rate in shares.items())
        raise UsageError(f"{given} leave nothing to train on", where="--test", hint="lower one of the two")


def _pool(splits: Mapping[str, SplitContent]) -> tuple[SplitContent, dict[Picture, str]]:
    """Put splits together as one, and say which name every picture has in it.

    Where the image roots differ, names are below the folder that the roots share. Ids stay where all differ, else all
    are numbered anew.
    """
    if not splits:
        raise UsageError("the source has no train split to part", where="--folds")
    contents = list(splits.values())
    root = contents[0].image_root
    prefixes = dict.fromkeys(splits, "")
    if any(content.image_root != root for content in contents):
        # Resolved: a root that is a link leads out of the shared folder.
        roots = {name: content.image_root.resolve() for name, content in splits.items()}
        root = Path(os.path.commonpath(roots.values()))
        prefixes = {
            name: "" if path == root else f"{path.relative_to(root).as_posix()}/" for name, path in roots.items()
        }
    image_ids = _fresh_ids([[image.id for image in content.annotations.images] for content in contents])
    ids = _fresh_ids([[annotation.id for annotation in content.annotations.annotations] for content in contents])
    images, annotations = [], []
    names: dict[Picture, str] = {}
    for (split, content), new_image_ids, new_ids in zip(splits.items(), image_ids, ids, strict=True):
        for image in content.annotations.images:
            names[split, image.file_name] = prefixes[split] + image.file_name
            images.append(replace(image, id=new_image_ids[image.id], file_name=names[split, image.file_name]))
        for annotation in content.annotations.annotations:
            image_id = new_image_ids[annotation.image_id]
            annotations.append(msgspec.structs.replace(annotation, id=new_ids[annotation.id], image_id=image_id))
    seen = [content.findings for content in contents]
    findings = Findings(
        zero_size_boxes=sum(found.zero_size_boxes for found in seen),
        unlisted_annotations=sum(found.unlisted_annotations for found in seen),
        difficult_boxes=sum(found.difficult_boxes for found in seen),
    )
    categories = contents[0].annotations.categories
    return SplitContent(AnnotationSet(tuple(images), tuple(annotations), categories), root, findings), names


def _fresh_ids(ids: Sequence[Sequence[int]]) -> list[dict[int, int]]:
    """Return the new id of every old one, for each list."""
    num_ids = sum(map(len, ids))
    if len({ident for part in ids for ident in part}) == num_ids:
        return [{ident: ident for ident in part} for part in ids]
    numbers = iter(range(1, num_ids + 1))
    return [{ident: next(numbers) for ident in part} for part in ids]


def _parts(whole: SplitContent, names: Mapping[str, Collection[str]]) -> dict[str, SplitContent]:
    """Return what belongs to the images of these names, by part."""
    parts = {part: select_images(whole.annotations, set(chosen)) for part, chosen in names.items()}
    return {part: SplitContent(found, whole.image_root, count_findings(found)) for part, found in parts.items()}


def _put_aside_notes(parts: Mapping[str, SplitContent], names: Iterable[str], seed: int) -> list[str]:
    num_images = {name: len(content.annotations.images) for name, content in parts.items()}
    return [
        f"the source has no {name} split: {num_images[name]} of {sum(num_images.values())} images were put aside for "
        f"it, seed {seed}, stratified by class"
        for name in names
    ]


def _notes_of_whole(whole: SplitContent) -> list[str]:
    """Return what only the reader saw, which is known for the whole alone."""
    seen = whole.findings
    return Findings(
        zero_size_boxes=seen.zero_size_boxes,
        unlisted_annotations=seen.unlisted_annotations,
        difficult_boxes=seen.difficult_boxes,
    ).notes()


def _rare_classes(whole: AnnotationSet, parts: Mapping[str, SplitContent]) -> list[str]:
    """Return a note for every part that lacks classes which the whole has."""
    all_counts = Counter(annotation.category_id for annotation in whole.annotations)
    notes: list[str] = []
    for name, content in parts.items():
        counts = Counter(annotation.category_id for annotation in content.annotations.annotations)
        missing = [
            f"{category.name} ({all_counts[category.id]} in all)"
            for category in sorted(whole.categories, key=lambda category: category.id)
            if all_counts[category.id] and not counts[category.id]
        ]
        if missing:
            more = f" and {len(missing) - NUM_EXAMPLES} more" if len(missing) > NUM_EXAMPLES else ""
            notes.append(f"{name} has no box of: {', '.join(missing[:NUM_EXAMPLES])}{more}")
    return notes

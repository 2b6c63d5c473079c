"""Writing subsets of the train split as annotation files, each with its manifest."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.annotations.coco import check_coco
from core.annotations.coco_document import CocoDocument, read_document
from core.annotations.findings import NUM_EXAMPLES
from core.annotations.prepared import get_split, require_same_classes
from core.annotations.records import AnnotationSet, PreparedDataset
from core.annotations.subsets.manifest import SubsetManifest, format_version_of, manifest_path, read_selection
from core.annotations.subsets.selection import Selection, select, select_folds
from core.errors import DataError, UsageError
from core.files import require_writable_folder, write_atomic, write_json


@dataclass(frozen=True)
class SubsetReport:
    """What `subsample` wrote, or (`dry_run`) would write.

    Attributes:
        path: the subset's annotation file.
        manifest: the file that says how it was made.
        name: what `train --subset` takes for it, unless another seed has the same.
        description: what it is: "5 % of train, seed 0".
        rate: the share of images that was asked for, in (0, 1], or None.
        shots: the least number of boxes of every class that was asked for, or None.
        stratified: whether the shares of the classes were held near those of the whole.
        seed: of the choice; None where nothing was drawn.
        rule: how the images were chosen.
        num_images: images in the subset.
        num_parent_images: images in the whole train split.
        num_annotations: annotations in the subset, crowds included.
        class_counts: boxes by class name, 0 where the subset has none.
        parent_class_counts: the same of the whole train split.
        missing_classes: names of classes that only the whole has.
        notes: sentences for the user.
        dry_run: whether nothing was written.
    """

    path: Path
    manifest: Path
    name: str
    description: str
    rate: float | None
    shots: int | None
    stratified: bool
    seed: int | None
    rule: str
    num_images: int
    num_parent_images: int
    num_annotations: int
    class_counts: Mapping[str, int]
    parent_class_counts: Mapping[str, int]
    missing_classes: tuple[str, ...]
    notes: tuple[str, ...]
    dry_run: bool


@dataclass(frozen=True)
class FoldReport:
    """One fold: the subset of all images but its own, to train on, and of its own, to measure on."""

    train: SubsetReport
    held_out: SubsetReport


@dataclass(frozen=True)
class FoldsReport:
    """What `subsample_folds` wrote, or (`dry_run`) would write; every image is in one `held_out`."""

    num_folds: int
    seed: int
    num_parent_images: int
    folds: tuple[FoldReport, ...]
    dry_run: bool


def subsample(
    dataset: PreparedDataset,
    rate: float | None = None,
    seed: int | None = None,
    out: Path | None = None,
    *,
    num_images: int | None = None,
    shots: int | None = None,
    stratify: bool = False,
    from_manifest: Path | None = None,
    dry_run: bool = False,
) -> SubsetReport:
    """Write a part of the train split as an annotation file, with its manifest beside it.

    Everything that the train file says of the chosen images stays, keys that dedetr does not read too. Equal
    inputs give equal bytes. One of `rate`, `num_images`, `shots` and `from_manifest` is given.

    Args:
        dataset: its train split is taken.
        rate: the share of images, in (0, 1].
        seed: of the choice, not negative; None: 0.
        out: the file to write, or a folder; by default beside the train file, where `find_subset` looks.
        num_images: how many images.
        shots: how many boxes of every class, at least; of a class that has fewer, all. Images stay whole, so that most
            classes get more: an object without its box would be learned as background.
        stratify: hold the classes' shares near those of the whole, and take every class where that is possible; with
            `rate` and `num_images`. Otherwise chance decides.
        from_manifest: a manifest whose images are taken again, from this train split whatever its hash is; or a COCO
            file whose images are.
        dry_run: write nothing.

    Raises:
        UsageError: what is asked for is contradictory or out of range, or `out` is a file that `subsample` did not
            make.
        DataError: the train file or the manifest has a fault, or the train split lacks images that the manifest names.
        MachineError: the file cannot be written.
    """
    asked = asked_for(rate, seed, num_images=num_images, shots=shots, stratify=stratify, from_manifest=from_manifest)
    if from_manifest is None:
        target = _target(dataset, asked, out)
        parent = _Parent.read(dataset)
        ids, notes = select(asked, parent.annotations)
        return parent.write(asked, ids, target, notes, dry_run=dry_run)
    selection, ids, sha256 = read_selection(from_manifest)
    target = _target(dataset, selection, out)
    parent = _Parent.read(dataset)
    parent.require(ids, from_manifest)
    notes = []
    if sha256 not in (None, parent.sha256):
        notes.append(
            f"{from_manifest.name} was made from another train file than {parent.path}: the images are its own"
        )
    return parent.write(selection, ids, target, notes, dry_run=dry_run)


def asked_for(
    rate: float | None = None,
    seed: int | None = None,
    *,
    num_images: int | None = None,
    shots: int | None = None,
    stratify: bool = False,
    from_manifest: Path | None = None,
) -> Selection:
    """Return what arguments of `subsample` ask for, checked as far as that is possible without the data set.

    Raises:
        UsageError: they are contradictory or out of range.
    """
    asked = Selection(
        rate=rate,
        num_images=num_images,
        shots=shots,
        source=None if from_manifest is None else from_manifest.name,
        stratified=stratify,
        seed=0 if seed is None and from_manifest is None else seed,
    )
    asked.check()
    return asked


def subsample_folds(
    dataset: PreparedDataset, num_folds: int, seed: int | None = None, out: Path | None = None, *, dry_run: bool = False
) -> FoldsReport:
    """Part the train split into folds of equal size and classes, and write two subsets for each, with manifests.

    Args:
        dataset: its train split is taken.
        num_folds: how many, at least 2.
        seed: of the choice, not negative; None: 0.
        out: the folder to write to; by default beside the train file, where `find_subset` looks.
        dry_run: write nothing.

    Raises:
        UsageError: an argument is out of range.
        DataError: the train file has a fault, or fewer images than folds.
        MachineError: a file cannot be written.
    """
    seed = seed or 0
    Selection(num_folds=num_folds, seed=seed).check()
    if out is not None and (out.is_file() or out.suffix == ".json"):
        raise UsageError("folds go to a folder, this is a file", where="--out", hint="name a folder")
    parent = _Parent.read(dataset)
    held_out = select_folds(parent.annotations, num_folds, seed)
    selections = [
        [Selection(fold=fold, num_folds=num_folds, held_out=held_out, seed=seed) for held_out in (False, True)]
        for fold in range(1, num_folds + 1)
    ]
    targets = [[_target(dataset, selection, out, is_folder=True) for selection in pair] for pair in selections]
    folds: list[FoldReport] = []
    for (train, held), (train_path, held_path), own in zip(selections, targets, held_out, strict=True):
        others = [ident for fold in held_out if fold is not own for ident in fold]
        folds.append(
            FoldReport(
                parent.write(train, others, train_path, [], dry_run=dry_run),
                parent.write(held, own, held_path, [], dry_run=dry_run),
            )
        )
    return FoldsReport(num_folds, seed, len(parent.annotations.images), tuple(folds), dry_run)


@dataclass(frozen=True)
class _Parent:
    """The train split that subsets are taken from.

    Attributes:
        document: its file.
        annotations: what the file says, checked.
        image_rows: of every annotation in the file, the position of its image; -1 if the file does not list it.
        class_rows: likewise of its class.
    """

    document: CocoDocument
    annotations: AnnotationSet
    image_rows: NDArray[np.int32]
    class_rows: NDArray[np.int32]

    @classmethod
    def read(cls, dataset: PreparedDataset) -> _Parent:
        split = get_split(dataset, "train")
        document = read_document(split.annotation_file)
        annotations, _ = check_coco(document, split.image_root)
        require_same_classes(dataset.classes, annotations.categories, str(dataset.root), str(split.annotation_file))
        if not annotations.images:
            raise DataError("the train split has no images", where=str(split.annotation_file))
        row_of_image = {image.id: row for row, image in enumerate(annotations.images)}
        row_of_class = {category.id: row for row, category in enumerate(annotations.categories)}
        image_rows, class_rows = array("i"), array("i")
        # From the file, as boxes of zero size are no longer among the checked annotations, and are copied all the same.
        for image_id, category_id in map(document.references, range(len(document.annotations))):
            image_rows.append(row_of_image.get(image_id, -1))
            class_rows.append(row_of_class.get(category_id, -1))
        return cls(document, annotations, np.array(image_rows), np.array(class_rows))

    @property
    def path(self) -> Path:
        return self.document.path

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.document.content).hexdigest()

    def require(self, image_ids: Iterable[int], wanted_by: Path) -> None:
        """Check that all these images are there, and at least one is asked for."""
        listed = {image.id for image in self.annotations.images}
        wanted = list(image_ids)
        missing = [ident for ident in wanted if ident not in listed]
        if missing or not wanted:
            some = ", ".join(map(str, missing[:NUM_EXAMPLES])) + (", ..." if len(missing) > NUM_EXAMPLES else "")
            raise DataError(
                f"{len(missing)} of its {len(wanted)} images are not in {self.path}: ids {some}"
                if wanted
                else "it names no image",
                where=str(wanted_by),
                hint="name the data set with --data that it was made from, or a copy of that",
            )

    def write(
        self, selection: Selection, image_ids: Iterable[int], path: Path, notes: Iterable[str], *, dry_run: bool
    ) -> SubsetReport:
        """Write the images of these ids and all that is labelled on them, in the file's order; then the manifest."""
        chosen = set(image_ids)
        is_chosen = np.array([image.id in chosen for image in self.annotations.images])
        images = np.flatnonzero(is_chosen).tolist()
        is_listed = self.image_rows >= 0
        is_kept = is_listed & is_chosen[self.image_rows]
        report = _report(
            selection,
            path,
            num_images=len(images),
            num_parent_images=len(is_chosen),
            num_annotations=int(is_kept.sum()),
            class_counts=self._count(is_kept),
            parent_class_counts=self._count(is_listed),
            notes=notes,
            dry_run=dry_run,
        )
        if dry_run:
            require_writable_folder(path.parent)
            return report
        written = self.document.with_entries(images, np.flatnonzero(is_kept).tolist())
        write_atomic(path, written)
        manifest = SubsetManifest(
            format_version=format_version_of(selection),
            **vars(selection),
            rule=selection.rule,
            parent=self.path.name,
            parent_sha256=self.sha256,
            num_parent_images=report.num_parent_images,
            subset_sha256=hashlib.sha256(written).hexdigest(),
            num_annotations=report.num_annotations,
            class_counts=dict(report.class_counts),
            image_ids=[self.annotations.images[row].id for row in images],
        )
        write_json(report.manifest, manifest.to_json())
        return report

    def _count(self, entries: NDArray[np.bool_]) -> dict[str, int]:
        names = [category.name for category in self.annotations.categories]
        counts = np.bincount(self.class_rows[entries], minlength=len(names))
        return dict(zip(names, counts.tolist(), strict=True))


def _report(
    selection: Selection,
    path: Path,
    *,
    num_images: int,
    num_parent_images: int,
    num_annotations: int,
    class_counts: Mapping[str, int],
    parent_class_counts: Mapping[str, int],
    notes: Iterable[str],
    dry_run: bool,
) -> SubsetReport:
    missing = tuple(name for name, count in class_counts.items() if not count and parent_class_counts[name])
    all_notes = list(notes)
    if missing:
        more = f" and {len(missing) - NUM_EXAMPLES} more" if len(missing) > NUM_EXAMPLES else ""
        by_chance = (selection.rate or selection.num_images) and not selection.stratified
        advice = "; --stratify takes every class where that is possible" if by_chance else ""
        all_notes.append(f"classes that the subset lacks: {', '.join(missing[:NUM_EXAMPLES])}{more}{advice}")
    return SubsetReport(
        path=path,
        manifest=manifest_path(path),
        name=_name_for_train(selection, path),
        description=selection.words,
        rate=selection.rate,
        shots=selection.shots,
        stratified=selection.stratified,
        seed=selection.seed,
        rule=selection.rule,
        num_images=num_images,
        num_parent_images=num_parent_images,
        num_annotations=num_annotations,
        class_counts=class_counts,
        parent_class_counts=parent_class_counts,
        missing_classes=missing,
        notes=tuple(all_notes),
        dry_run=dry_run,
    )


def _name_for_train(selection: Selection, path: Path) -> str:
    if selection.rate is not None and not selection.stratified:
        return repr(selection.rate)
    return path.name if selection.source is not None else selection.short_name


def _target(dataset: PreparedDataset, selection: Selection, out: Path | None, *, is_folder: bool = False) -> Path:
    parent = get_split(dataset, "train").annotation_file
    name = f"{parent.stem}-{selection.file_name}"
    path = parent.with_name(name) if out is None else out / name if is_folder or out.is_dir() else out
    if out is None or not path.exists() or manifest_path(path).is_file():
        return path
    raise UsageError(
        "the file exists, and `subsample` did not make it", where=str(path), hint="name another file with --out"
    )

"""All that can be told of a source or a prepared data set in one go: faults, statistics, advice. Writes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.annotations.checks.advice import Advice, TrainingSettings, advise
from core.annotations.checks.images import check_images
from core.annotations.checks.near_duplicates import NUM_BITS, NearDuplicate, find_near_duplicates
from core.annotations.checks.repeats import Picture, find_repeats
from core.annotations.checks.statistics import SplitStatistics, objects_per_image, split_statistics
from core.annotations.coco import inspect_coco
from core.annotations.content import ReadOptions, SplitContent
from core.annotations.faults import HINTS, Fault, FaultLog, merge
from core.annotations.images import check_image
from core.annotations.layouts import cityscapes_splits, coco_splits
from core.annotations.prepared import FILE_NAME, is_prepared, open_dataset, require_same_classes
from core.annotations.readers.table import read_source
from core.annotations.records import Split
from core.errors import DataError, UsageError

PREPARED = "prepared"
_STRICT_CODES = ("F08", "F27")

OnImages = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        path: the source or the prepared data set.
        format: `prepared`, a source's format as `--format` names it, or None where nothing could be read.
        faults: merged by code and severity, errors first.
        num_errors: how many faults are errors; without any the data can be used.
        num_warnings: how many are warnings.
        statistics: by split name, of what can be used.
        near_duplicates: pictures that look almost like one of an earlier split, or of the same where there is but one.
        advice: what follows, the weightiest first.
        notes: sentences for the user.
    """

    path: Path
    format: str | None
    faults: tuple[Fault, ...]
    num_errors: int
    num_warnings: int
    statistics: Mapping[str, SplitStatistics]
    near_duplicates: tuple[NearDuplicate, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Contents:
    """What could be read, by split."""

    format: str | None = None
    splits: Mapping[str, SplitContent] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_source(
    path: Path,
    format_name: str | None = None,
    options: ReadOptions | None = None,
    *,
    strict: bool = False,
    near_duplicates: bool = True,
    settings: TrainingSettings | None = None,
    on_images: OnImages | None = None,
) -> CheckReport:
    """Find all faults of a source or a prepared data set, and describe it.

    What cannot be used is written down and left out, and the check goes on with the rest. A file that cannot be read at
    all costs its split in COCO's formats and in prepared data sets, else all of the source. As nothing is written,
    archives are not unpacked but refused.

    Args:
        path: a folder or file of any format, or a folder that `prepare-data` made.
        format_name: the source's format; by default it is recognised.
        options: what a source does not say itself.
        strict: boxes of zero size and pictures in two splits are errors, not warnings.
        near_duplicates: decode all images and look for those that are almost the same.
        settings: of the run that is meant, for sizes after resizing, queries and advice on settings.
        on_images: is told how many of how many looks at images are done.

    Raises:
        UsageError: the format is not known, or the options do not fit it.
    """
    log = FaultLog(drops=True)
    read = _read(path, format_name, replace(options or ReadOptions(), unpack=False), log)
    for split, content in read.splits.items():
        log.add(_accepted(content, f"{path}, {split}", split))
    progress = _Progress(read.splits, on_images, num_looks=2 if near_duplicates else 1)
    usable = _usable(read.splits, log, progress)
    repeats = log.attempt(find_repeats, usable) or {}
    near = find_near_duplicates(usable, repeats, log, progress.step) if near_duplicates else []
    progress.finish()
    log.add(_shared(path, repeats, near))
    sides = (settings.short_side, settings.max_long_side) if settings else (None, None)
    statistics = {split: split_statistics(content.annotations, *sides) for split, content in usable.items()}
    if settings and "train" in usable:
        log.add(_misfits(path, usable["train"], settings))
    faults = merge(_stricter(fault) if strict else fault for fault in log.faults)
    counts = {
        severity: sum(fault.count for fault in faults if fault.severity == severity)
        for severity in ("error", "warning")
    }
    return CheckReport(
        path,
        read.format,
        tuple(faults),
        counts["error"],
        counts["warning"],
        statistics,
        tuple(near),
        tuple(advise(statistics, settings, _leaked(repeats, near))),
        (*read.notes, *_notes(repeats)),
    )


def _read(path: Path, format_name: str | None, options: ReadOptions, log: FaultLog) -> _Contents:
    if format_name is None and is_prepared(path):
        if options.one_based:
            raise UsageError("a prepared data set does not count from 1", where="--one-based", hint="leave it out")
        return log.attempt(_read_prepared, path, options, log) or _Contents()
    own = FaultLog(drops=True)
    try:
        source = read_source(path, format_name, options, own)
    except DataError as error:
        is_folder = os.path.isdir(path)  # noqa: PTH112 - Path raises for names that are too long
        may_have_files = is_folder and format_name in (None, "coco", "cityscapes")
        files = {**cityscapes_splits(path), **coco_splits(path)} if may_have_files else {}
        if not files:
            log.add([*own.faults, Fault.of(error)])
            return _Contents()
        name = "coco" if coco_splits(path) else "cityscapes"
        read = _Contents(name, _read_files(files, options, log))
    else:
        log.add(own.faults)
        read = _Contents(source.format, source.splits, source.notes)
    for split, content in read.splits.items():
        first_name, first = next(iter(read.splits.items()))
        log.attempt(
            require_same_classes, first.annotations.categories, content.annotations.categories, first_name, split
        )
    return read


def _read_prepared(path: Path, options: ReadOptions, log: FaultLog) -> _Contents:
    dataset = open_dataset(path)
    splits = _read_files(dataset.splits, options, log)
    for split, content in splits.items():
        file = str(dataset.splits[split].annotation_file)
        log.attempt(require_same_classes, dataset.classes, content.annotations.categories, str(path / FILE_NAME), file)
    return _Contents(PREPARED, splits)


def _read_files(files: Mapping[str, Split], options: ReadOptions, log: FaultLog) -> dict[str, SplitContent]:
    splits: dict[str, SplitContent] = {}
    for name, split in files.items():
        read = log.attempt(inspect_coco, split.annotation_file, split.image_root, options, log)
        if read is not None:
            splits[name] = SplitContent(read[0], split.image_root, read[1])
    return splits


def _accepted(content: SplitContent, where: str, split: str) -> list[Fault]:
    """Return what the reader noticed and accepted, and whether there is anything to learn from."""
    faults = [
        replace(fault, places=tuple(f"{split}: {place}" for place in fault.places))
        for fault in content.findings.faults(where)
    ]
    if split == "train" and all(annotation.is_crowd for annotation in content.annotations.annotations):
        message = "the training images hold no box to learn from"
        faults.append(Fault("F13", "error", message, where, HINTS["F13"]))
    return faults


class _Progress:
    """Counts looks at images."""

    def __init__(self, splits: Mapping[str, SplitContent], on_images: OnImages | None, num_looks: int) -> None:
        self._total = num_looks * sum(len(content.annotations.images) for content in splits.values())
        self._on_images = on_images
        self._done = 0

    def step(self) -> None:
        """Count one look."""
        self._done += 1
        if self._on_images is not None:
            self._on_images(self._done, self._total)

    def finish(self) -> None:
        """Say that all is done, though images that cannot be used were not looked at twice."""
        if self._done < self._total:
            self._done = self._total - 1
            self.step()


def _usable(splits: Mapping[str, SplitContent], log: FaultLog, progress: _Progress) -> dict[str, SplitContent]:
    """Return the splits with the images that can be used; those without any are left out."""

    def check(path: Path, size: tuple[int, int]) -> None:
        progress.step()
        check_image(path, size)

    usable: dict[str, SplitContent] = {}
    for split, content in splits.items():
        annotations = log.attempt(check_images, split, content.annotations, content.image_root, log, check)
        if annotations is not None and annotations.images:
            usable[split] = replace(content, annotations=annotations)
    return usable


def _shared(path: Path, repeats: Mapping[Picture, Picture], near: Sequence[NearDuplicate]) -> list[Fault]:
    """Return the fault of pictures that are in two splits."""
    equal = [f"{'/'.join(first)} = {'/'.join(second)}" for second, first in repeats.items() if first[0] != second[0]]
    alike = [
        f"{'/'.join(pair.first)} ~ {'/'.join(pair.second)} ({pair.distance} of {NUM_BITS} bits differ)"
        for pair in near
        if pair.first[0] != pair.second[0]
    ]
    if not equal and not alike:
        return []
    counts = [f"{len(equal)} as equal files"] * bool(equal) + [f"{len(alike)} that look almost the same"] * bool(alike)
    message = f"pictures that are in two splits: {', '.join(counts)}, such as {(equal + alike)[0]}"
    hint = "remove them from one of the two splits: what was trained on cannot be tested on"
    return [Fault("F27", "warning", message, str(path), hint, len(equal) + len(alike), (*equal, *alike))]


def _leaked(repeats: Mapping[Picture, Picture], near: Sequence[NearDuplicate]) -> Mapping[str, int]:
    """Count the pictures of each split that advice on leakage is about."""
    pairs = [(first, second) for second, first in repeats.items() if first[0] != second[0]]
    pairs += [(pair.first, pair.second) for pair in near]
    return Counter(split for split, _ in dict.fromkeys(second for _, second in pairs))


def _notes(repeats: Mapping[Picture, Picture]) -> list[str]:
    within = Counter(first[0] for second, first in repeats.items() if first[0] == second[0])
    return [f"{split}: pictures whose file equals another of the split: {count}" for split, count in within.items()]


def _misfits(path: Path, train: SplitContent, settings: TrainingSettings) -> list[Fault]:
    """Return what does not fit the run that is meant."""
    faults: list[Fault] = []
    num_labels = objects_per_image(train.annotations) * settings.repeat_time
    is_over = num_labels > settings.num_queries
    where = f"{path}, train"
    if is_over.any():
        names = tuple(image.file_name for image, over in zip(train.annotations.images, is_over, strict=True) if over)
        repeated = ", repeated ones counted," if settings.repeat_time > 1 else ""
        message = f"images with more labels{repeated} than the {settings.num_queries} queries of {settings.model}"
        hint = f"train with --num-queries {num_labels.max()}"
        faults.append(Fault("F30", "warning", message, where, hint, len(names), names))
    num_images = len(train.annotations.images)
    if num_images * settings.sample_repeat < settings.batch_size:
        message = (
            f"the {num_images} training images are fewer than a batch of {settings.batch_size}: every step sees all"
        )
        faults.append(Fault("F29", "note", message, where, "train with a smaller --batch-size"))
    return faults


def _stricter(fault: Fault) -> Fault:
    is_refused = fault.severity == "warning" and fault.code in _STRICT_CODES
    return replace(fault, severity="error") if is_refused else fault

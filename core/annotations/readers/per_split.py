"""Folders with one export for each split, as Roboflow makes them: `train`, `valid`, `test`, in any of the formats."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import msgspec

from core.annotations.content import ReadOptions, Source, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.json_values import MAX_ID, read_bytes
from core.annotations.readers.coco_files import SPLIT_NAMES
from core.annotations.readers.yolo_paths import files_below, is_image
from core.annotations.records import AnnotationSet, Category
from core.errors import DataError, UsageError

_READS_ALL_SPLITS = "yolo"
"""The format whose reader has to see the whole folder: classes are named beside the splits, not in their labels."""


class SplitFormat(Protocol):
    """A format that one split may have; see `core.annotations.readers.table.Format`."""

    @property
    def name(self) -> str:
        """As `--format` takes it."""

    @property
    def recognises(self) -> Callable[[Path], bool]:
        """Tells whether a file or folder is of it."""

    @property
    def read(self) -> Callable[[Path, ReadOptions, FaultLog], Source]:
        """Reads it."""

    @property
    def counts_from_one(self) -> bool:
        """Whether its box edges may count pixels from 1."""


@dataclass(frozen=True)
class _Export:
    """What was found for one split."""

    path: Path
    format: SplitFormat


class _Group(msgspec.Struct):
    name: str
    supercategory: str | None = None


class _Groups(msgspec.Struct):
    categories: list[_Group]


def is_per_split(path: Path, formats: Sequence[SplitFormat]) -> bool:
    """Tell whether a folder has a folder for each split, at least one of which is of one of the formats.

    One whose splits are all YOLO is none: that format's own reader takes it.
    """
    exports = [export for _, folder in _folders(path) if (export := _recognise(folder, formats)) is not None]
    return any(export.format.name != _READS_ALL_SPLITS for export in exports)


def read_per_split(
    path: Path,
    options: ReadOptions | None = None,
    log: FaultLog | None = None,
    *,
    formats: Sequence[SplitFormat],
) -> Source:
    """Read a folder with `train`, `valid` (`val`, `validation`) and `test`, or some of them, each a source of its own.

    A split's folder is what one of the formats recognises, or holds a file that one does, such as
    `_annotations.coco.json` or `_annotations.csv`. Classes are merged by name: those of train keep their ids, and what
    only another split has follows. A class that Roboflow puts over the others (its own supercategory is `none`, it is
    theirs, and no split has a box of it) is the name of the project, not of an object: it is left out.

    Args:
        path: the folder.
        options: go to the formats that know them.
        log: is told of entries that cannot be used; by default the first one is raised.
        formats: the formats that a split may have, in the order in which they are tried.

    Raises:
        DataError: a split has annotations in no known format, or splits of its own, or a fault.
        UsageError: boxes should count from 1, and no split's format can.
    """
    options, log = options or ReadOptions(), log or FaultLog()
    exports, notes = _find_exports(path, formats)
    if options.one_based and not any(export.format.counts_from_one for export in exports.values()):
        names = ", ".join(dict.fromkeys(export.format.name for export in exports.values()))
        raise UsageError(f"boxes in the format {names} do not count from 1", where="--one-based")
    contents: dict[str, SplitContent] = {}
    for split, export in exports.items():
        source = export.format.read(export.path, options, log)
        if len(source.splits) != 1:
            raise DataError(
                f"the folder of one split has splits of its own: {', '.join(source.splits)}",
                where=str(export.path),
                hint="prepare it alone, or remove its lists of splits",
                code="F03",
            )
        contents[split] = next(iter(source.splits.values()))
        notes += [f"{split}: {note}" for note in source.notes]
    _require_names(contents, exports)
    merged, merge_notes = _merge(contents, _group_names(export.path for export in exports.values()))
    formats_read = {split: export.format.name for split, export in exports.items()}
    notes.append("a folder for each split: " + ", ".join(f"{split} ({name})" for split, name in formats_read.items()))
    name = "per-split" if len(set(formats_read.values())) > 1 else next(iter(formats_read.values()))
    return Source(path, name, merged, (*notes, *merge_notes))


def _folders(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the split and the folder for it, by the usual names; two of them may be for one split."""
    for split, names in SPLIT_NAMES.items():
        yield from ((split, path / name) for name in names if (path / name).is_dir())


def _recognise(folder: Path, formats: Sequence[SplitFormat]) -> _Export | None:
    """Return a format that takes Roboflow's annotation file; else one that takes the folder, or its only such file."""
    files = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in (".json", ".csv") and path.is_file()]
    usual = [path for path in files if path.name.startswith("_annotations.")]
    for path in (*usual[:1], folder, *(files if len(files) == 1 else ())):
        export = _first_that_takes(path, formats)
        if export is not None:
            return export
    return None


def _first_that_takes(path: Path, formats: Sequence[SplitFormat]) -> _Export | None:
    return next((_Export(path, row) for row in formats if _takes(row, path)), None)


def _takes(row: SplitFormat, candidate: Path) -> bool:
    try:
        return row.recognises(candidate)
    except DataError:  # half a layout, which is refused where it is the source itself
        return False


def _find_exports(path: Path, formats: Sequence[SplitFormat]) -> tuple[dict[str, _Export], list[str]]:
    exports: dict[str, _Export] = {}
    notes: list[str] = []
    for split, folder in _folders(path):
        export = _recognise(folder, formats)
        if export is None:
            unknown = next((folder / name for name in files_below(folder) if not is_image(name)), None)
            if unknown is not None:
                raise DataError(
                    f"the format of the {split} annotations is not recognised",
                    where=str(folder),
                    hint=f"remove {unknown.relative_to(path)} if it has nothing to do with them",
                    code="F03",
                )
            notes.append(f"{folder.name} holds no annotations, left out")
        elif split in exports:
            raise DataError(
                f"{exports[split].path.relative_to(path).parts[0]} and {folder.name} are both the {split} split",
                where=str(path),
                hint="remove or rename one of them",
                code="F03",
            )
        else:
            exports[split] = export
    if not exports:
        raise DataError("no folder train, valid or test with annotations", where=str(path), code="F03")
    return exports, notes


def _require_names(contents: Mapping[str, SplitContent], exports: Mapping[str, _Export]) -> None:
    """Refuse a split whose classes have numbers for names beside one whose classes have words."""
    numbered = [
        split
        for split, content in contents.items()
        if all(category.name == str(category.id) for category in content.annotations.categories)
    ]
    if numbered and len(numbered) < len(contents):
        raise DataError(
            f"the {numbered[0]} annotations number their classes and do not name them, other splits do",
            where=str(exports[numbered[0]].path),
            hint="name them there too (YOLO: a classes.txt with a name a line)",
            code="F28",
        )


def _group_names(files: Iterable[Path]) -> set[str]:
    """Return the names of the categories in COCO files that stand over others of the same file, and under none."""
    names: set[str] = set()
    for file in files:
        if file.suffix.lower() != ".json":
            continue
        try:
            categories = msgspec.json.decode(read_bytes(file), type=_Groups).categories
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # no strict JSON: its classes all stay
            continue
        above = {category.supercategory for category in categories}
        names |= {c.name for c in categories if c.supercategory in (None, "", "none") and c.name in above}
    return names


def _merge(contents: Mapping[str, SplitContent], groups: set[str]) -> tuple[dict[str, SplitContent], list[str]]:
    """Give all splits the same classes; return them, and notes of what was changed."""
    listed = {split: {c.id: c.name for c in content.annotations.categories} for split, content in contents.items()}
    used = {
        split: {listed[split][annotation.category_id] for annotation in content.annotations.annotations}
        for split, content in contents.items()
    }
    groups = groups.difference(*used.values())
    first = next(iter(contents))
    id_of_name = {name: ident for ident, name in sorted(listed[first].items()) if name not in groups}
    new: list[str] = []
    for names in listed.values():
        for _, name in sorted(names.items()):
            if name not in id_of_name and name not in groups:
                id_of_name[name] = _next_id(id_of_name.values(), name, contents[first].image_root)
                new.append(name)
    categories = tuple(Category(ident, name) for name, ident in id_of_name.items())
    merged = {
        split: SplitContent(
            _with_ids(content.annotations, categories, id_of_name),
            content.image_root,
            replace(
                content.findings,
                classes_without_instances=tuple(name for name in id_of_name if name not in used[split]),
            ),
        )
        for split, content in contents.items()
    }
    notes = [f"the name of a group, of which no box is, left out of the classes: {name}" for name in sorted(groups)]
    if any(id_of_name.get(name, ident) != ident for names in listed.values() for ident, name in names.items()):
        notes.append(f"class ids differ between the splits: merged by name, the ids are those of {first}")
    if new:
        notes.append(f"classes that {first} does not list, put after its own: {', '.join(new)}")
    return merged, notes


def _next_id(ids: Collection[int], name: str, folder: Path) -> int:
    highest = max(ids, default=0)
    if highest >= MAX_ID:
        raise DataError(
            f"the class {name!r} of another split cannot get the id after {highest}",
            where=str(folder),
            hint="give the classes smaller ids, or list all of them in every split",
            code="F16",
        )
    return highest + 1


def _with_ids(
    annotations: AnnotationSet, categories: tuple[Category, ...], id_of_name: Mapping[str, int]
) -> AnnotationSet:
    # A group's id is never asked for: no box is of it.
    new_ids = {category.id: id_of_name.get(category.name, category.id) for category in annotations.categories}
    changed = (
        annotation
        if new_ids[annotation.category_id] == annotation.category_id
        else msgspec.structs.replace(annotation, category_id=new_ids[annotation.category_id])
        for annotation in annotations.annotations
    )
    return AnnotationSet(annotations.images, tuple(changed), categories)

"""Prepared data sets: `dataset.yaml` written and read, and the splits that it names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.annotations.coco import inspect_coco, read_categories, write_coco
from core.annotations.coco_document import read_document
from core.annotations.content import SplitContent
from core.annotations.faults import FaultLog
from core.annotations.findings import Findings
from core.annotations.json_values import MAX_ID
from core.annotations.layouts import find_layout
from core.annotations.records import AnnotationSet, Category, PreparedDataset, Split
from core.errors import DataError
from core.files import YAML_SLIPS, sha256_of, write_atomic

FORMAT_VERSION = 1
FILE_NAME = "dataset.yaml"
MADE_BY = "dedetr"

Count = Annotated[int, Field(ge=0, le=MAX_ID)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ClassEntry(_Part):
    """A class in dataset.yaml, with its number of boxes in each split."""

    id: Annotated[int, Field(ge=-MAX_ID, le=MAX_ID)]
    name: Annotated[str, Field(min_length=1)]
    num_boxes: dict[str, Count] = {}


class SplitEntry(_Part):
    """A split in dataset.yaml; paths are relative to its folder, or absolute."""

    annotations: Annotated[str, Field(min_length=1)]
    images: Annotated[str, Field(min_length=1)]
    num_images: Count = 0
    num_annotations: Count = 0
    sha256: str | None = None
    """Of the annotation file when it was written; a record, not a seal."""


class DatasetFile(_Part):
    """All of dataset.yaml."""

    format_version: int
    made_by: str | None = None
    name: Annotated[str, Field(min_length=1)]
    recipe: str | None = None
    classes: Annotated[list[ClassEntry], Field(min_length=1)]
    splits: Annotated[dict[str, SplitEntry], Field(min_length=1)]
    sources: list[str] = []


def open_dataset(root: Path) -> PreparedDataset:
    """Open a data set: a folder with a dataset.yaml, or one in the layout of COCO or Cityscapes.

    Annotation files are not checked here; `read_split` does.

    Raises:
        DataError: there is no data set, or its dataset.yaml cannot be used.
    """
    is_folder = os.path.isdir(root)  # noqa: PTH112 - Path raises for names that are too long
    if is_folder and (root / FILE_NAME).is_file():
        return _open_prepared(root)
    layout = find_layout(root) if is_folder else None
    if layout is not None:
        return _open_layout(root, layout[1])
    if not is_folder or not any(root.iterdir()):
        raise DataError(
            f"no data set at {root}",
            hint="run `dedetr prepare-data` for the demo set, `dedetr prepare-data SOURCE` for your own images, "
            "or name a folder with `--data`",
        )
    raise DataError(
        f"no data set at {root}: neither a dataset.yaml nor the layout of COCO or Cityscapes",
        hint=f"run `dedetr prepare-data {root} --out data` and use that folder",
    )


def is_prepared(path: Path) -> bool:
    """Tell whether a folder has a dataset.yaml that looks like ours: other tools have files of this name, too."""
    try:
        with (path / FILE_NAME).open("rb") as stream:
            return b"format_version:" in stream.read(1 << 16)
    except (OSError, ValueError):  # ValueError: a name that this system cannot have
        return False


def read_dataset_file(root: Path) -> DatasetFile:
    """Read and check `root/dataset.yaml`; runs nothing that stands in it.

    Raises:
        DataError: it is missing, no YAML, of a newer format, or a key is missing, unknown or of a wrong type.
    """
    path = root / FILE_NAME
    try:
        raw = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise DataError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=where) from error
    except OSError as error:
        raise DataError(f"cannot read it: {error.strerror}", where=str(path)) from error
    except RecursionError as error:
        raise DataError("nested too deeply", where=str(path)) from error
    except YAML_SLIPS as error:
        problem = error if isinstance(error, ValueError) else "a value is not what its tag or its form says"
        raise DataError(f"not valid YAML: {problem}", where=str(path)) from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if type(version) is not int or not 1 <= version <= MAX_ID:
        raise DataError(
            f'the key "format_version" must be {FORMAT_VERSION}',
            where=str(path),
            hint="run `dedetr prepare-data` again",
        )
    if version > FORMAT_VERSION:
        raise DataError(
            f"the data set has format version {version}, this dedetr reads up to {FORMAT_VERSION}",
            where=str(path),
            hint="use the dedetr that made it or a newer one, or run `dedetr prepare-data` again",
        )
    try:
        return DatasetFile.model_validate(raw)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise DataError("; ".join(faults), where=str(path), hint="run `dedetr prepare-data` again") from error


def _open_prepared(root: Path) -> PreparedDataset:
    file = read_dataset_file(root)
    where = str(root / FILE_NAME)
    classes = tuple(sorted((Category(c.id, c.name) for c in file.classes), key=lambda category: category.id))
    if len({c.id for c in classes}) < len(classes) or len({c.name for c in classes}) < len(classes):
        raise DataError("classes: ids and names must differ from each other", where=where)
    splits: dict[str, Split] = {}
    for name, entry in file.splits.items():
        split = Split(name, root / entry.annotations, root / entry.images)
        for key, path, exists in (
            ("annotations", split.annotation_file, os.path.isfile(split.annotation_file)),  # noqa: PTH113 - see above
            ("images", split.image_root, os.path.isdir(split.image_root)),  # noqa: PTH112
        ):
            if not exists:
                raise DataError(
                    f"splits.{name}.{key}: {path} does not exist",
                    where=where,
                    hint="was it moved? correct the path there, or run `dedetr prepare-data` again",
                )
        splits[name] = split
    return PreparedDataset(root, file.name, classes, splits, file.recipe)


def _open_layout(root: Path, splits: Mapping[str, Split]) -> PreparedDataset:
    # All files of a layout name the same classes (`read_split` checks it); the smallest one is read fastest.
    file = min((split.annotation_file for split in splits.values()), key=lambda path: path.stat().st_size)
    classes = sorted(read_categories(read_document(file)), key=lambda category: category.id)
    return PreparedDataset(root, root.absolute().name, tuple(classes), splits)


def get_split(dataset: PreparedDataset, name: str) -> Split:
    """Return a split by name.

    Raises:
        DataError: the data set has no such split.
    """
    if name not in dataset.splits:
        raise DataError(
            f"the data set has no {name} split, only: {', '.join(dataset.splits)}",
            where=str(dataset.root),
            hint="name one of them, or prepare a source that has it",
        )
    return dataset.splits[name]


def read_split(
    dataset: PreparedDataset, name: str, annotation_file: Path | None = None, *, log: FaultLog | None = None
) -> tuple[AnnotationSet, Findings]:
    """Read and check the annotations of a split, or of a subset file of it.

    Args:
        dataset: the data set.
        name: of the split.
        annotation_file: of a subset; None: the split's own.
        log: is told of images and annotations that cannot be used; by default the first one is raised.

    Raises:
        DataError: there is no such split, its file has a fault, or other classes than the data set.
    """
    split = get_split(dataset, name)
    file = annotation_file or split.annotation_file
    annotations, findings = inspect_coco(file, split.image_root, None, log)
    require_same_classes(dataset.classes, annotations.categories, str(dataset.root), str(file))
    return annotations, findings


def require_same_classes(
    expected: Iterable[Category], found: Iterable[Category], expected_in: str, found_in: str
) -> None:
    """Check that two lists of classes hold the same ids and names, in any order.

    Raises:
        DataError: they differ; says which are missing and which are new.
    """
    wanted, present = ({(category.id, category.name) for category in side} for side in (expected, found))
    if wanted == present:
        return
    parts = [
        f"{label} {', '.join(f'{name!r} (id {ident})' for ident, name in sorted(classes))}"
        for label, classes in (("it lacks", wanted - present), ("only it has", present - wanted))
        if classes
    ]
    raise DataError(
        f"its classes differ from those of {expected_in}: {'; '.join(parts)}",
        where=f"{found_in}: categories",
        hint="use files that belong together: the same category ids and names, even of classes without instances",
        code="F28",
    )


def write_dataset(
    root: Path,
    name: str,
    splits: Mapping[str, SplitContent],
    *,
    sources: Iterable[str] = (),
    recipe: str | None = None,
) -> PreparedDataset:
    """Write `annotations/SPLIT.json` for every split and then `dataset.yaml`; images are left where they are.

    Image roots below `root` are recorded relative to it, others absolute.

    Raises:
        DataError: the splits have different classes.
        MachineError: the folder cannot be written.
    """
    first_name, first = next(iter(splits.items()))
    categories = sorted(first.annotations.categories, key=lambda category: category.id)
    counts = {split: count_boxes(content.annotations) for split, content in splits.items()}
    entries: dict[str, SplitEntry] = {}
    for split, content in splits.items():
        require_same_classes(categories, content.annotations.categories, first_name, split)
        file = root / "annotations" / f"{split}.json"
        write_coco(file, content.annotations)
        image_root = content.image_root.absolute()
        is_inside = image_root.is_relative_to(root.absolute())
        entries[split] = SplitEntry(
            annotations=file.relative_to(root).as_posix(),
            images=(image_root.relative_to(root.absolute()) if is_inside else image_root).as_posix(),
            num_images=len(content.annotations.images),
            num_annotations=len(content.annotations.annotations),
            sha256=sha256_of(file),
        )
    description = DatasetFile(
        format_version=FORMAT_VERSION,
        made_by=MADE_BY,
        name=name,
        recipe=recipe,
        classes=[
            ClassEntry(id=c.id, name=c.name, num_boxes={split: counts[split][c.name] for split in splits})
            for c in categories
        ],
        splits=entries,
        sources=list(sources),
    )
    content_yaml = yaml.safe_dump(description.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)
    write_atomic(root / FILE_NAME, content_yaml)
    return open_dataset(root)


def count_boxes(annotations: AnnotationSet) -> dict[str, int]:
    """Count the boxes of every class name, 0 for a class without any."""
    counts = Counter(annotation.category_id for annotation in annotations.annotations)
    return {category.name: counts[category.id] for category in annotations.categories}

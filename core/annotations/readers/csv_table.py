"""CSV tables of boxes: with names of columns (TensorFlow tutorials, Roboflow), or in the form of RetinaNet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from core.annotations.box_formats import look_like_edges, look_normalised
from core.annotations.content import ReadOptions, Source, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.findings import NUM_EXAMPLES, count_findings
from core.annotations.images import check_image, upright_size
from core.annotations.readers.coco_files import SPLIT_NAMES
from core.annotations.readers.csv_rows import Row, Table, read_classes, read_table
from core.annotations.records import Annotation, AnnotationSet, BoxXYWH, Category, ImageRecord
from core.errors import DataError
from core.files import NamesWithin, join_within

SUFFIXES = (".csv", ".tsv")
_CLASS_FILES = ("classes.csv", "class_map.csv", "class_list.csv", "class_mapping.csv")


@dataclass(frozen=True)
class _Listed:
    """An image and the rows that name it."""

    image: ImageRecord
    rows: Sequence[Row]


@dataclass(frozen=True)
class _Part:
    """A split before its classes have ids."""

    image_root: Path
    images: Sequence[ImageRecord]
    boxes: Sequence[tuple[int, str, BoxXYWH]]
    """Image id and class name of each."""
    num_zero_size: int


def is_csv(path: Path) -> bool:
    """Tell whether a file is a CSV table, or a folder has such files where they are looked for."""
    return path.suffix.lower() in SUFFIXES if path.is_file() else bool(_files(path))


def read_csv(path: Path, options: ReadOptions | None = None, log: FaultLog | None = None) -> Source:
    """Read a table of boxes, or a folder: `{train,val,test}.csv`, `train_annotations.csv` or `train_labels.csv` and so
    on, `_annotations.csv` (Roboflow), `annotations.csv`, or one CSV file.

    The first line names the columns, in any order: `filename,width,height,class,xmin,ymin,xmax,ymax` (or other names
    of the same; width and height may be missing; `x,y,w,h` for left, top and size of the box). Without it the rows are
    `path,x1,y1,x2,y2,class` (RetinaNet). A row without box and class names an image without objects. Classes are
    sorted by name and get the ids 1 to C, unless a `classes.csv` or `class_map.csv` beside the file gives ids. Names
    of images are relative to the file's folder, or to `images`, `train` and so on in it.

    Args:
        path: the file, which is the train split, or folder.
        options: with `one_based` 1 is subtracted from the edges; by default they are taken as written.
        log: is told of rows and images that cannot be used; by default the first one is raised.

    Raises:
        DataError: a file is missing, damaged, lacks a column, or a box in it cannot be right.
    """
    options, log = options or ReadOptions(), log or FaultLog()
    files = {"train": path} if path.is_file() else _files(path)
    if not files:
        raise DataError("no CSV file found", where=str(path), code="F03")
    folder = path.parent if path.is_file() else path
    class_file = next((folder / name for name in _CLASS_FILES if (folder / name).is_file()), None)
    categories = read_classes(class_file) if class_file else ()
    parts: dict[str, _Part] = {}
    for split, file in files.items():
        table = read_table(file, log)
        if class_file:
            table = _with_known_classes(table, {category.name for category in categories}, class_file, log)
        num_images = sum(len(part.images) for part in parts.values())
        parts[split] = _read_part(table, folder, split, num_images + 1, options.one_based, log)
    if not categories:
        names = sorted({name for part in parts.values() for _, name, _ in part.boxes})
        categories = tuple(Category(index, name) for index, name in enumerate(names, start=1))
    if not categories:
        raise DataError("no row has a box", where=str(path), code="F13")
    return Source(path, "csv", {split: _content(part, categories) for split, part in parts.items()})


def _files(folder: Path) -> dict[str, Path]:
    """Return the file of each split."""
    found = {
        path.name: path
        for path in sorted(folder.glob("*"))
        if path.suffix.lower() in SUFFIXES and path.name not in _CLASS_FILES and path.is_file()
    }
    files: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        stems = (stem for name in names for stem in (name, f"{name}_annotations", f"{name}_labels"))
        file = next((found[stem + suffix] for stem in stems for suffix in SUFFIXES if stem + suffix in found), None)
        if file is not None:
            files[split] = file
    if files:
        return files
    usual = [found[name] for name in ("_annotations.csv", "annotations.csv") if name in found]
    return {"train": (usual or list(found.values()))[0]} if usual or len(found) == 1 else {}


def _with_known_classes(table: Table, names: set[str], class_file: Path, log: FaultLog) -> Table:
    unknown = [row for row in table.rows if row.class_name and row.class_name not in names]
    if not unknown:
        return table
    new = list(dict.fromkeys(row.class_name for row in unknown))
    reason = f"classes that {class_file.name} does not list: {_first_few(map(repr, new))}"
    log.invalid(_refuse(table, unknown, reason, "F07"))
    return replace(table, rows=[row for row in table.rows if not row.class_name or row.class_name in names])


def _refuse(table: Table, rows: Sequence[Row], reason: str, code: str) -> DataError:
    """Return the error of one fault in one or more rows: the first few named, all counted."""
    if len(rows) > 1:
        reason = f"{reason} ({len(rows)} such: lines {_first_few(str(row.line) for row in rows)})"
    places = [table.place(row) for row in rows]
    return DataError(reason, where=places[0], code=code, places=places)


def _first_few(words: Iterable[str]) -> str:
    listed = list(words)
    return ", ".join(listed[:NUM_EXAMPLES]) + (", ..." if len(listed) > NUM_EXAMPLES else "")


def _read_part(table: Table, folder: Path, split: str, first_id: int, one_based: bool, log: FaultLog) -> _Part:
    image_root, rows_of_image = _find_images(table, folder, split, log)
    names = NamesWithin(image_root)
    listed: list[_Listed] = []
    for name, rows in rows_of_image.items():
        size = log.attempt(_read_size, name, rows, table, image_root, names)
        if size is not None:
            listed.append(_Listed(ImageRecord(first_id + len(listed), name, *size), rows))
    boxes, num_zero_size = _read_boxes(table, listed, one_based, log)
    return _Part(image_root, [one.image for one in listed], boxes, num_zero_size)


def _find_images(table: Table, folder: Path, split: str, log: FaultLog) -> tuple[Path, dict[str, list[Row]]]:
    """Return the folder that has most of the images, and the rows of those there by their names in it."""
    names = NamesWithin(folder)
    first_rows: dict[str, Row] = {}
    for row in table.rows:
        first_rows.setdefault(row.file_name, row)
    plain = {name: log.attempt(_plain_name, name, folder, names, table.place(row)) for name, row in first_rows.items()}
    usable = [name for name in plain.values() if name is not None]
    own = SPLIT_NAMES.get(split, (split,))
    candidates = [folder, folder / "images", *(folder / "images" / name for name in own), *(folder / n for n in own)]
    best, spellings = folder, dict[str, str]()
    for root in (candidate for candidate in candidates if candidate.is_dir()):
        found = {name: spelling for name in usable if (spelling := _spelling(root, name)) is not None}
        if len(found) > len(spellings):
            best, spellings = root, found
        if len(spellings) == len(usable):
            break
    missing = [f"{best / name}" for name in usable if name not in spellings]
    if missing:
        log.invalid(_all_missing(missing, len(usable)))
    rows_of_image: dict[str, list[Row]] = {}
    for row in table.rows:
        spelling = spellings.get(plain[row.file_name] or "")
        if spelling is not None:
            rows_of_image.setdefault(spelling, []).append(row)
    return best, rows_of_image


def _all_missing(places: Sequence[str], num_images: int) -> DataError:
    return DataError(
        f"{len(places)} of {num_images} listed images are missing: {_first_few(Path(place).name for place in places)}",
        where=places[0],
        hint="names are looked for beside the CSV file, and in images, train and so on there",
        code="F19",
        places=places,
    )


def _plain_name(name: str, folder: Path, names: NamesWithin, where: str) -> str:
    """Return a name relative to the folder, which an absolute one must lead into."""
    if PurePosixPath(name).is_absolute():
        for base in (folder.absolute(), folder.resolve()):
            if PurePosixPath(name).is_relative_to(base.as_posix()):
                name = PurePosixPath(name).relative_to(base.as_posix()).as_posix()
                break
    _require_inside(names, name, where)
    return PurePosixPath(name).as_posix()


def _require_inside(names: NamesWithin, name: str, where: str) -> None:
    try:
        names.require(name)
    except DataError as error:
        raise DataError(error.message, where=where, hint=error.hint, code=error.code) from error


def _spelling(root: Path, name: str) -> str | None:
    """Return the name as the file has it: perhaps without outer spaces, or with the other kind of slash."""
    spellings = (name, name.strip(), name.strip().replace("\\", "/"))
    # os.path, as Path.is_file raises for names that are too long
    return next((spelling for spelling in spellings if os.path.isfile(f"{root}/{spelling}")), None)  # noqa: PTH113


def _read_size(name: str, rows: Sequence[Row], table: Table, image_root: Path, names: NamesWithin) -> tuple[int, int]:
    """Return width and height of an image as its rows state them, or as the file has them."""
    _require_inside(names, name, table.place(rows[0]))
    stated = [row for row in rows if row.image_size is not None]
    if not stated or stated[0].image_size is None:
        return upright_size(join_within(image_root, name))
    width, height = stated[0].image_size
    for row in stated:
        if row.image_size != stated[0].image_size:
            raise DataError(
                f"states another size of {name!r} than line {stated[0].line}", where=table.place(row), code="F25"
            )
    ends = [_end(row.numbers, table.has_extents) for row in rows if row.numbers]
    if any(right > width or bottom > height for right, bottom in ends):
        # Either the box is wrong, or the size is: then this says so.
        check_image(join_within(image_root, name), (width, height))
    return width, height


def _end(numbers: Sequence[float], has_extents: bool) -> tuple[float, float]:
    first, second, third, fourth = numbers
    return (first + third, second + fourth) if has_extents else (third, fourth)


def _read_boxes(
    table: Table, listed: Iterable[_Listed], one_based: bool, log: FaultLog
) -> tuple[list[tuple[int, str, BoxXYWH]], int]:
    """Return image id, class name and box of every row that can be used, and how many boxes have zero size."""
    pairs = [(one.image, row) for one in listed for row in one.rows if row.numbers is not None]
    if not pairs:
        return [], 0
    numbers = np.array([row.numbers for _, row in pairs], dtype=np.float64)
    sizes = np.array([(image.width, image.height) for image, _ in pairs], dtype=np.float64)
    _require_pixels(table, pairs[0][1], numbers, sizes)
    starts = numbers[:, :2] - (1 if one_based else 0)
    extents = numbers[:, 2:] if table.has_extents else numbers[:, 2:] - numbers[:, :2]

    def refuse_boxes(wrong: NDArray[np.bool_], reason: Callable[[int], str], code: str) -> None:
        rows = [pairs[index][1] for index in np.flatnonzero(wrong).tolist()]
        if rows:
            log.invalid(_refuse(table, rows, reason(int(np.argmax(wrong))), code))

    negative: NDArray[np.bool_] = np.any(extents < 0, axis=1)
    refuse_boxes(negative, lambda row: f"negative width or height: {_numbers_text(numbers[row])}", "F08")
    has_size: NDArray[np.bool_] = np.all(extents > 0, axis=1)
    outside = has_size & np.any((starts >= sizes) | (starts + extents <= 0), axis=1)
    refuse_boxes(
        outside,
        lambda row: (
            f"the box {_numbers_text(numbers[row])} lies wholly outside its image of "
            f"{sizes[row, 0]:g} x {sizes[row, 1]:g} pixels"
        ),
        "F10",
    )
    boxes_xywh_px = np.concatenate([starts, extents], axis=1).tolist()
    boxes = [
        (pairs[index][0].id, pairs[index][1].class_name, tuple(boxes_xywh_px[index]))
        for index in np.flatnonzero(has_size & ~outside).tolist()
    ]
    return boxes, int(np.sum(~has_size & ~negative))


def _numbers_text(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _require_pixels(table: Table, first: Row, numbers: NDArray[np.float64], sizes: NDArray[np.float64]) -> None:
    """Raise an error if the numbers of all boxes look like something else than what the columns are called."""
    if look_normalised(numbers, sizes):
        guess, hint = "normalised to 0 ... 1", "multiply them by width and height of their images"
    elif table.has_extents and look_like_edges(numbers, sizes):
        guess, hint = "like edges x1, y1, x2, y2", "call the columns xmin, ymin, xmax, ymax"
    elif not table.has_extents and _look_like_extents(numbers, sizes):
        guess, hint = "like left, top, width, height", "name the columns in the first line: x, y, w, h"
    else:
        return
    meant = "left, top, width, height" if table.has_extents else "edges"
    raise DataError(
        f"the boxes look {guess}, not like {meant} in pixels", where=table.place(first), hint=hint, code="F11"
    )


def _look_like_extents(numbers: NDArray[np.float64], sizes: NDArray[np.float64]) -> bool:
    """Guess whether what is called edges are left, top, width, height: then every other one would be reversed."""
    starts, ends = numbers[:, :2], numbers[:, 2:]
    reversed_ = (ends < starts).any(axis=1)
    fits = ((ends > 0) & (starts >= 0) & (starts + ends <= sizes + 1)).all(axis=1)
    return bool(reversed_.sum() >= max(3, 0.25 * len(numbers)) and fits.mean() > 0.9)


def _content(part: _Part, categories: tuple[Category, ...]) -> SplitContent:
    id_of_class: Mapping[str, int] = {category.name: category.id for category in categories}
    annotations = tuple(
        Annotation(index, image_id, id_of_class[class_name], box, box[2] * box[3], is_crowd=False)
        for index, (image_id, class_name, box) in enumerate(part.boxes, start=1)
    )
    annotation_set = AnnotationSet(tuple(part.images), annotations, categories)
    return SplitContent(
        annotation_set, part.image_root, count_findings(annotation_set, zero_size_boxes=part.num_zero_size)
    )

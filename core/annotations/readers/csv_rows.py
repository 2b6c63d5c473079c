"""CSV files of boxes taken apart: which column means what, and every row as names and numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from core.annotations.coco_document import LARGEST
from core.annotations.faults import FaultLog
from core.annotations.images import require_moderate_size
from core.annotations.json_values import MAX_ID, read_bytes
from core.annotations.records import Category
from core.errors import DataError

_SYNONYMS = {
    "filename": ("filename", "imagename", "imagefile", "filepath", "imagepath", "image", "file", "path", "img"),
    "class": ("classname", "labelname", "categoryname", "class", "label", "category"),
    "xmin": ("xmin", "x1", "bboxxmin", "bboxx1", "left", "bboxx", "x"),
    "ymin": ("ymin", "y1", "bboxymin", "bboxy1", "top", "bboxy", "y"),
    "xmax": ("xmax", "x2", "bboxxmax", "bboxx2", "right"),
    "ymax": ("ymax", "y2", "bboxymax", "bboxy2", "bottom"),
    "box width": ("bboxwidth", "bboxw", "boxwidth", "w", "width"),
    "box height": ("bboxheight", "bboxh", "boxheight", "h", "height"),
    "width": ("imagewidth", "imgwidth", "width"),
    "height": ("imageheight", "imgheight", "height"),
}
"""What columns are called, by what they mean, the surest name first; without case, spaces and punctuation."""
_KNOWN = {name for names in _SYNONYMS.values() for name in names}
_EDGES, _EXTENTS = ("xmin", "ymin", "xmax", "ymax"), ("xmin", "ymin", "box width", "box height")
_NAMES_OF_IDS = ("id", "class_id", "label", "index")
_SEPARATORS = ",;\t"
_HINT = "the first line names the columns: filename,width,height,class,xmin,ymin,xmax,ymax"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the file.

    Attributes:
        line: its number.
        file_name: of the image, as it is written.
        class_name: empty where the row says only that the image is there.
        numbers: the box as the table has it, or None where there is none.
        image_size: stated width and height of the image in pixels, or None.
    """

    line: int
    file_name: str
    class_name: str
    numbers: tuple[float, float, float, float] | None
    image_size: tuple[int, int] | None


@dataclass(frozen=True)
class Table:
    """The rows of a file; `has_extents`: their numbers are left, top, width, height, not the four edges."""

    path: Path
    rows: Sequence[Row]
    has_extents: bool

    def place(self, row: Row) -> str:
        """Return where a row stands, as errors name it."""
        return f"{self.path}:{row.line}"


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns; `count` is how many the file has."""

    file: int
    class_name: int
    box: Sequence[int]
    size: Sequence[int]
    count: int
    has_extents: bool


_RETINANET = _Columns(file=0, class_name=5, box=(1, 2, 3, 4), size=(), count=6, has_extents=False)


def read_table(path: Path, log: FaultLog) -> Table:
    """Read a file with a line that names its columns, or with rows `path,x1,y1,x2,y2,class` (RetinaNet).

    Args:
        path: the file: UTF-8, separated by commas, semicolons or tabs.
        log: is told of rows that cannot be used.

    Raises:
        DataError: the file cannot be read, or lacks a column.
    """
    lines = _read_lines(path)
    number, first = next(lines)
    if _is_header(first):
        columns = _find_columns(first, f"{path}:{number}")
    elif _is_retinanet(first):
        columns = _RETINANET
        lines = chain([(number, first)], lines)
    else:
        raise DataError(
            f"neither names of columns nor path,x1,y1,x2,y2,class; found: {_listed(first)}",
            where=f"{path}:{number}",
            hint=_HINT,
            code="F02",
        )
    words: dict[str, str] = {}  # each name of an image or a class is kept once
    rows = (log.attempt(_read_row, number, cells, columns, path, words) for number, cells in lines)
    return Table(path, [row for row in rows if row is not None], columns.has_extents)


def read_classes(path: Path) -> tuple[Category, ...]:
    """Read a file of rows `name,id`, the ids as they stand.

    Raises:
        DataError: a row is no such, or an id or name is used twice.
    """
    id_of_name: dict[str, int] = {}
    name_of_id: dict[int, str] = {}
    for number, cells in _read_lines(path):
        name, written = (cells[0].strip(), cells[1].strip()) if len(cells) > 1 else (cells[0].strip(), "")
        if not id_of_name and written.casefold() in _NAMES_OF_IDS:
            continue
        where = f"{path}:{number}"
        if re.fullmatch(r"-?[0-9]{1,19}", written) is None or abs(int(written)) > MAX_ID:
            raise DataError(
                f"the class id must be a whole number, is {written[:40]!r}",
                where=where,
                hint="each line is a class name and its id: name,id",
                code="F16",
            )
        ident = int(written)
        if not name or name in id_of_name:
            what = f"name {name!r} is used already" if name else "name is missing"
            raise DataError(f"the class {what}", where=where, code="F17")
        if ident in name_of_id:
            raise DataError(f"the class id {ident} is used already by {name_of_id[ident]!r}", where=where, code="F16")
        id_of_name[name], name_of_id[ident] = ident, name
    return tuple(Category(ident, name) for name, ident in id_of_name.items())


def _read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of every line that is not empty, at least one."""
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8 text", where=f"{path}:{line}", hint="save it as CSV in UTF-8", code="F01") from error
    if "\0" in text:  # some versions of the csv module take it
        raise DataError("not CSV: holds a NUL byte", where=str(path), hint="save it as CSV in UTF-8", code="F01")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
    is_empty = True
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                is_empty = False
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(
            f"not valid CSV: {error}",
            where=f"{path}:{reader.line_num}",
            hint="is a quotation mark left open? one within quotes is written twice",
            code="F01",
        ) from error
    if is_empty:
        raise DataError("the file has no rows", where=str(path), code="F02")


def _separator(text: str) -> str:
    """Return the separator under which the first line makes most sense."""
    first = next((line for line in io.StringIO(text, newline="") if line.strip()), "")[: 1 << 12]

    def sense(separator: str) -> tuple[int, int]:
        cells = next(csv.reader([first], delimiter=separator), [])
        return sum(_key(cell) in _KNOWN for cell in cells), len(cells)

    return max(_SEPARATORS, key=sense)


def _key(cell: str) -> str:
    return re.sub(r"[\W_]", "", cell.casefold())


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_header(cells: Sequence[str]) -> bool:
    # A class or a file may be called `left` or `image`: one such word makes no header.
    return sum(_key(cell) in _KNOWN for cell in cells) >= 2 and not any(map(_is_number, cells))


def _is_retinanet(cells: Sequence[str]) -> bool:
    box = cells[1:5]
    return len(cells) == _RETINANET.count and (any(map(_is_number, box)) or not any(cell.strip() for cell in box))


def _find_columns(header: Sequence[str], where: str) -> _Columns:
    position: dict[str, int] = {}
    for index, cell in enumerate(header):
        position.setdefault(_key(cell), index)

    def find(meaning: str, taken: Sequence[int] = ()) -> int | None:
        found = (position[name] for name in _SYNONYMS[meaning] if name in position)
        return next((index for index in found if index not in taken), None)

    file, class_name = find("filename"), find("class")
    edges, extents = [find(edge) for edge in _EDGES], [find(extent) for extent in _EXTENTS]
    has_extents = None in edges and None not in extents
    box = [index for index in (extents if has_extents else edges) if index is not None]
    if file is None or class_name is None or len(box) < len(_EDGES):
        found = {"filename": file, "class": class_name, **dict(zip(_EDGES, edges, strict=True))}
        missing = ", ".join(name for name, index in found.items() if index is None)
        raise DataError(f"no column for {missing}; found: {_listed(header)}", where=where, hint=_HINT, code="F02")
    sizes = [index for index in (find("width", box), find("height", box)) if index is not None]
    return _Columns(file, class_name, box, sizes if len(sizes) == 2 else (), len(header), has_extents)


def _listed(cells: Sequence[str]) -> str:
    return ", ".join(cell.strip()[:40] for cell in cells[:16]) + (", ..." if len(cells) > 16 else "")


def _read_row(line: int, cells: Sequence[str], columns: _Columns, path: Path, words: dict[str, str]) -> Row:
    where = f"{path}:{line}"
    if len(cells) < columns.count or any(map(str.strip, cells[columns.count :])):
        raise DataError(
            f"has {len(cells)} fields, not {columns.count}",
            where=where,
            hint="put names that hold the separator into quotes",
            code="F02",
        )
    file_name, class_name = cells[columns.file], cells[columns.class_name].strip()
    file_name, class_name = words.setdefault(file_name, file_name), words.setdefault(class_name, class_name)
    if not file_name.strip():
        raise DataError("the image's file name is missing", where=where, code="F02")
    image_size = _image_size([cells[index].strip() for index in columns.size], where) if columns.size else None
    written = [cells[index].strip() for index in columns.box]
    if not class_name and not any(written):
        return Row(line, file_name, "", None, image_size)
    names = _EXTENTS if columns.has_extents else _EDGES
    first, second, third, fourth = (_number(text, name, where) for text, name in zip(written, names, strict=True))
    if not class_name:
        raise DataError("the class name is missing", where=where, code="F17")
    return Row(line, file_name, class_name, (first, second, third, fourth), image_size)


def _image_size(written: Sequence[str], where: str) -> tuple[int, int] | None:
    """Return the stated size; None where it is left empty, or 0."""
    if not any(written):
        return None
    width, height = (_number(text, name, where) for text, name in zip(written, ("width", "height"), strict=True))
    if width == 0 or height == 0:
        return None
    if width < 0 or height < 0 or not width.is_integer() or not height.is_integer():
        raise DataError(f"the image cannot have {width:g} x {height:g} pixels", where=where, code="F02")
    require_moderate_size(int(width), int(height), where)
    return int(width), int(height)


def _number(text: str, name: str, where: str) -> float:
    if not text:
        raise DataError(f"{name} is missing", where=where, code="F02")
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not -LARGEST < number < LARGEST:
        raise DataError(f"{name} must be a finite number, is {text[:40]!r}", where=where, code="F09")
    return number

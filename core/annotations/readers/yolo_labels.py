"""Label files of YOLO: a line an object, its class and its box or outline as fractions of the image."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from core.annotations.faults import FaultLog
from core.annotations.readers.yolo_lines import Line, LineFaults, read_lines
from core.annotations.readers.yolo_pixels import BoxCXCYWH
from core.errors import DataError

TOLERANCE = 0.01
"""How far a value may lie outside 0 ... 1; what Ultralytics tolerates."""
_MAX_CLASS_ID = 10**9
_FORM = "a line is: class, centre x, centre y, width, height, as fractions of the image's width and height"


@dataclass(frozen=True)
class LabelledBox:
    """A line of a label file; `box_cxcywh_norm` has no negative size."""

    class_id: int
    box_cxcywh_norm: BoxCXCYWH
    place: str


class LabelReader:
    """Reads the label files of one source, and judges at the end by all of them.

    Args:
        class_ids: the classes that may occur; None: any whole number.
        num_key_point_values: numbers that follow each box (a data set for poses); they are passed over.
    """

    def __init__(self, class_ids: Container[int] | None, num_key_point_values: int = 0) -> None:
        self._class_ids = class_ids
        self._num_key_point_values = num_key_point_values
        self.faults = LineFaults()
        self.num_outlines = 0
        self.num_repeated = 0
        self._num_lines = self._num_beyond = self._num_leaving = self._num_like_edges = 0
        self._first_place = self._first_beyond = ""

    def read(self, path: Path) -> list[LabelledBox]:
        """Return the boxes of a label file; lines that cannot be used are kept in `faults`.

        Raises:
            DataError: the file cannot be read, or holds predictions.
        """
        boxes: list[LabelledBox] = []
        for line in read_lines(path):
            self._num_lines += 1
            self._first_place = self._first_place or line.place
            self._refuse_predictions(line)
            box = self.faults.attempt(self._read_line, line)
            if box is not None:
                boxes.append(box)
        self.num_repeated += len(boxes) - len({(box.class_id, box.box_cxcywh_norm) for box in boxes})
        return boxes

    def tell(self, log: FaultLog) -> None:
        """Tell the log of all lines that cannot be used.

        Raises:
            DataError: the boxes are in another unit or format; or a line cannot be used, unless such are dropped.
        """
        if 2 * self._num_beyond > self._num_lines:
            raise DataError(
                f"the boxes look like pixels: {self._num_beyond} of {self._num_lines} have values above 1",
                where=self._first_beyond,
                hint=_FORM,
                code="F11",
            )
        num_usual = self._num_lines - self._num_beyond
        if self._num_leaving >= max(3, 0.25 * num_usual) and self._num_like_edges > 0.9 * num_usual:
            raise DataError(
                f"the boxes look like edges x1, y1, x2, y2: {self._num_leaving} of {self._num_lines} leave their image",
                where=self._first_place,
                hint=_FORM,
                code="F11",
            )
        self.faults.tell(log)

    def _read_line(self, line: Line) -> LabelledBox:
        words = line.text.split()
        values = _numbers(self._without_key_points(words, line.place), line.place)
        is_beyond = max(values) > 1 + TOLERANCE
        if is_beyond:
            self._num_beyond += 1
            self._first_beyond = self._first_beyond or line.place
        class_id = self._class_id(words[0], line.place)
        is_outline = len(values) > 4
        box = _bounding_box(values) if is_outline else (values[0], values[1], values[2], values[3])
        if min(box[2:]) < 0:
            raise DataError(f"negative width or height: {' '.join(words[3:5])}", where=line.place, code="F08")
        if is_beyond or min(values) < -TOLERANCE:
            wrong = next(value for value in values if not -TOLERANCE <= value <= 1 + TOLERANCE)
            raise DataError(f"{wrong:g} is outside 0 ... 1", where=line.place, hint=_FORM, code="F10")
        centre_x, centre_y, width, height = box
        self._num_leaving += max(centre_x + width / 2, centre_y + height / 2) > 1 + TOLERANCE
        self._num_like_edges += width > centre_x and height > centre_y
        self.num_outlines += is_outline
        return LabelledBox(class_id, box, line.place)

    def _refuse_predictions(self, line: Line) -> None:
        if len(line.text.split()) == 6 and not self._num_key_point_values:
            raise DataError(
                "has 6 columns: this looks like a file of predictions, with a confidence at the end",
                where=line.place,
                hint="use the label files that people made, of 5 columns",
                code="F03",
            )

    def _without_key_points(self, words: Sequence[str], place: str) -> Sequence[str]:
        """Return the words of the box or outline."""
        if self._num_key_point_values:
            if len(words) != 5 + self._num_key_point_values:
                raise DataError(
                    f"has {len(words)} columns; with key points it must have {5 + self._num_key_point_values}",
                    where=place,
                    code="F09",
                )
            return words[1:5]
        if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
            raise DataError(
                f"has {len(words)} columns; must have 5, or a class and at least three points",
                where=place,
                hint=_FORM,
                code="F09",
            )
        return words[1:]

    def _class_id(self, word: str, place: str) -> int:
        try:
            number = float(word)  # some tools write 3.000000
        except ValueError:
            number = -1.0
        if not number.is_integer() or not 0 <= number <= _MAX_CLASS_ID:
            raise DataError(
                f"the class must be a whole number from 0, is {word[:40]!r}", where=place, hint=_FORM, code="F07"
            )
        if self._class_ids is not None and int(number) not in self._class_ids:
            raise DataError(
                f"the class {int(number)} has no name",
                where=place,
                hint="classes count from 0: compare the names with the labels",
                code="F07",
            )
        return int(number)


def _numbers(words: Sequence[str], place: str) -> list[float]:
    numbers: list[float] = []
    for word in words:
        try:
            number = float(word)
        except ValueError:
            number = float("nan")
        if not isfinite(number):
            raise DataError(f"must be finite numbers, has {word[:40]!r}", where=place, hint=_FORM, code="F09")
        numbers.append(number)
    return numbers


def _bounding_box(points: Sequence[float]) -> BoxCXCYWH:
    """Return the box around an outline x, y, x, y, ..."""
    xs, ys = points[0::2], points[1::2]
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top

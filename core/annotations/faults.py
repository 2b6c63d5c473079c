"""Kinds of faults in data sets, and the log in which a reader keeps those that it goes on after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

from core.errors import DataError

Severity = Literal["error", "warning", "note"]

TITLES = {
    "F01": "file that cannot be parsed",
    "F02": "part of a file that is missing or of a wrong type",
    "F03": "file of another format",
    "F04": "image that is listed twice",
    "F05": "annotation id that is used twice",
    "F06": "annotation of an image that is not listed",
    "F07": "annotation of a class that is not listed",
    "F08": "box of zero or negative size",
    "F09": "box that is not four finite numbers",
    "F10": "box that reaches out of its image",
    "F11": "boxes in another format or unit",
    "F12": "image without objects",
    "F13": "training data without any box",
    "F15": "crowd",
    "F16": "class id that cannot be used",
    "F17": "class name that is missing or used twice",
    "F18": "class without instances",
    "F19": "image that is missing",
    "F20": "image that is cut off or damaged",
    "F21": "image file of zero bytes",
    "F22": "file that is no image",
    "F23": "image with pixels that have no form as RGB",
    "F25": "image of another size than stated",
    "F26": "image too large, or of no size",
    "F27": "picture that is in two splits",
    "F28": "splits with different classes",
    "F29": "fewer images than a batch",
    "F30": "image with more objects than a model has queries",
    "F31": "file name that leads out of its folder",
    "F35": "image or archive that unpacks to far too much",
    "F36": "image of a format that is not read",
    "F37": "archive that cannot be unpacked safely",
    "F39": "download that failed or has another checksum",
}
"""What each code stands for; docs/faults.md has more on each."""

HINTS = {
    "F01": "copy or export the file again",
    "F02": "export the file again, or correct this place",
    "F03": "name the right file or folder, or its format with --format",
    "F04": "give every image its own id, or remove one of the two",
    "F05": "give every annotation its own id",
    "F06": "remove these annotations, or list their images",
    "F07": "add the class to the list, or correct the ids: some programs count from 0 and some from 1",
    "F08": "label the box again; --on-invalid drop leaves it out",
    "F09": "label the box again; --on-invalid drop leaves it out",
    "F10": "label the box again: was the image scaled or turned? --on-invalid drop leaves it out",
    "F11": "convert the boxes to what the format defines",
    "F13": "label some objects",
    "F15": "iscrowd is 1 for a group that nobody counted, else 0",
    "F16": "give every class a whole number of its own",
    "F17": "give every class a name of its own",
    "F19": "copy the image, or correct its name; --on-invalid drop leaves it out",
    "F20": "copy or export the image again; --on-invalid drop leaves it out",
    "F21": "copy the image again; --on-invalid drop leaves it out",
    "F22": "put the image there, or remove it from the list; --on-invalid drop leaves it out",
    "F26": "scale the image and its boxes down, or correct the size",
    "F28": "list the same ids and names in all splits",
    "F29": "give the split images, or remove it",
    "F31": "use paths below the folder of the images",
    "F37": "unpack it yourself if you trust it, and name the folder",
    "F39": "run the command again",
}
"""What to do about a fault of each code, where its error has nothing better to say."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Fault:
    """All faults of one code and severity in one source.

    Attributes:
        code: a key of `TITLES`.
        severity: error: cannot be used; warning: can be used, and is likely to be wrong; note: worth knowing.
        message: of the first such fault.
        where: the first place.
        hint: what to do about it.
        count: how many there are.
        places: all places, as far as they were kept.
    """

    code: str
    severity: Severity
    message: str
    where: str | None = None
    hint: str | None = None
    count: int = 1
    places: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: DataError, severity: Severity = "error") -> Fault:
        """Return what an error says as a fault."""
        places = error.places or ((error.where,) if error.where else ())
        return cls(
            error.code or "F02",
            severity,
            error.message,
            error.where,
            error.hint or HINTS.get(error.code or ""),
            max(1, len(error.places)),
            places,
        )

    @property
    def title(self) -> str:
        """What its code stands for."""
        return TITLES.get(self.code, "")


def merge(faults: Iterable[Fault]) -> list[Fault]:
    """Put faults of one code and severity together: errors first, then by code; the first one's words stand for all."""
    first: dict[tuple[str, Severity], Fault] = {}
    counts: dict[tuple[str, Severity], int] = {}
    places: dict[tuple[str, Severity], list[str]] = {}
    for fault in faults:
        key = fault.code, fault.severity
        first.setdefault(key, fault)
        counts[key] = counts.get(key, 0) + fault.count
        places.setdefault(key, []).extend(fault.places)
    rank = {"error": 0, "warning": 1, "note": 2}
    return [
        Fault(code, severity, one.message, one.where, one.hint, counts[code, severity], tuple(places[code, severity]))
        for (code, severity), one in sorted(first.items(), key=lambda item: (rank[item[0][1]], item[0][0]))
    ]


class FaultLog:
    """Is told of every entry that cannot be used: refuses it, or writes it down so that the reader goes on without.

    Args:
        drops: write down; by default the first fault is raised.
    """

    def __init__(self, *, drops: bool = False) -> None:
        self.drops = drops
        self._faults: list[Fault] = []

    @property
    def faults(self) -> list[Fault]:
        """What was written down, merged by code."""
        return merge(self._faults)

    def invalid(self, error: DataError) -> None:
        """Raise the error; or write it down, and the caller leaves out what it is about.

        Raises:
            DataError: this one, unless faults are dropped.
        """
        if not self.drops:
            raise error
        self._faults.append(Fault.of(error))

    def attempt(
        self, read: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> _Result | None:
        """Return what reading an entry gives; None if it cannot be used and is left out.

        Raises:
            DataError: by `read`, unless faults are dropped.
        """
        try:
            return read(*args, **kwargs)
        except DataError as error:
            self.invalid(error)
            return None

    def add(self, faults: Sequence[Fault]) -> None:
        """Write down faults that something else has found."""
        self._faults.extend(faults)

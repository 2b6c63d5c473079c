"""A COCO file as read: objects of what is used, and no others, polygons above all."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from core.annotations.json_values import kind, parse_json, read_bytes
from core.errors import DataError

LARGEST = 1e9
"""Beyond any coordinate in pixels, and its square beyond any area; NaN and infinity fail the same comparison."""

_Pixels = Annotated[float, Meta(gt=-LARGEST, lt=LARGEST)]
_Area = Annotated[float, Meta(gt=-(LARGEST**2), lt=LARGEST**2)]


class CocoImage(Struct, gc=False):
    """An image as COCO files have it; sizes in pixels, perhaps written as 640.0."""

    id: int
    file_name: str
    width: int | float
    height: int | float


class CocoAnnotation(Struct, gc=False):
    """An annotation as COCO files have it: `bbox` is left, top, width, height in pixels, `area` in square pixels."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[_Pixels, _Pixels, _Pixels, _Pixels]
    area: _Area | UnsetType = UNSET
    iscrowd: Literal[0, 1] | bool = 0


class CocoCategory(Struct, gc=False):
    """A category as COCO files have it."""

    id: int
    name: str


class _CocoFile(Struct):
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class _UnreadFile(Struct):
    images: list[Raw]
    annotations: list[Raw]


Fields = Mapping[str, Any]
"""An image, annotation or category as Python's `json` reads it."""

_file_decoder = msgspec.json.Decoder(_CocoFile)
_unread_decoder = msgspec.json.Decoder(_UnreadFile)
_sections_decoder = msgspec.json.Decoder(dict[str, Raw])


@dataclass(frozen=True)
class CocoDocument:
    """A COCO file whose structure is checked: three lists of objects. What is in the objects is yet to be checked.

    Attributes:
        path: of the file.
        content: its bytes.
        images: all of one kind: typed, if all three lists could be; else as `Fields`.
        annotations: likewise.
        categories: likewise.
        parsed: all of the file as Python's `json` reads it, or None if the lists are typed.
    """

    path: Path
    content: bytes
    images: Sequence[CocoImage | Fields]
    annotations: Sequence[CocoAnnotation | Fields]
    categories: Sequence[CocoCategory | Fields]
    parsed: Fields | None = None

    def references(self, position: int) -> tuple[int, int]:
        """Return the ids of image and category of a checked annotation."""
        entry = self.annotations[position]
        if isinstance(entry, CocoAnnotation):
            return entry.image_id, entry.category_id
        return entry["image_id"], entry["category_id"]

    def with_entries(self, images: Iterable[int], annotations: Iterable[int]) -> bytes:
        """Return the JSON of the same file with only the images and annotations at these positions.

        Everything is copied as it stands in the file or, where that is no strict JSON, as Python's `json` writes it.
        Equal arguments give equal bytes.
        """
        if self.parsed is not None:
            part = {
                **self.parsed,
                "images": [self.parsed["images"][position] for position in images],
                "annotations": [self.parsed["annotations"][position] for position in annotations],
            }
            return json.dumps(part, separators=(",", ":")).encode() + b"\n"
        unread = _unread_decoder.decode(self.content)
        sections = {
            **_sections_decoder.decode(self.content),
            "images": [unread.images[position] for position in images],
            "annotations": [unread.annotations[position] for position in annotations],
        }
        return msgspec.json.encode(sections) + b"\n"


def read_document(path: Path) -> CocoDocument:
    """Read a COCO detection file and check its structure.

    What is as it should be is read into typed objects, and the rest of the file passed over. A file with anything else
    (a fault; NaN and infinity, which Python writes) is parsed whole by Python's `json`: slowly, but then it can be said
    what is wrong.

    Raises:
        DataError: the file is missing, no JSON, or no COCO detection file.
    """
    content = read_bytes(path)
    if _is_utf8(content):  # msgspec looks at the letters only of what it returns
        try:
            file = _file_decoder.decode(content)
            return CocoDocument(path, content, file.images, file.annotations, file.categories)
        except (msgspec.DecodeError, RecursionError):
            pass
    return parse_document(content, path)


def fields_of(entry: CocoImage | CocoCategory | Fields) -> Fields:
    """Return what is to be checked of an image or a category."""
    return msgspec.structs.asdict(entry) if isinstance(entry, Struct) else entry


def _is_utf8(content: bytes) -> bool:
    if content.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(content)
    try:
        for start in range(0, len(view), 1 << 20):
            decoder.decode(view[start : start + (1 << 20)])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def parse_document(content: bytes, path: Path) -> CocoDocument:
    """Do as `read_document`, by Python's `json` alone."""
    raw = parse_json(content, path)
    guess = _other_format(raw)
    if guess:
        raise DataError(
            f"this looks like {guess}, not like COCO detection annotations",
            where=str(path),
            hint='a COCO file is an object with "images", "annotations" and "categories"',
            code="F03",
        )
    if not isinstance(raw, dict):
        raise DataError(
            f"a COCO file is a JSON object, this is {kind(raw)}",
            where=str(path),
            hint='it needs "images", "annotations" and "categories"',
            code="F02",
        )
    for section in ("images", "annotations", "categories"):
        if section not in raw:
            raise DataError(f'the key "{section}" is missing', where=str(path), code="F02")
        if not isinstance(raw[section], list):
            raise DataError(f"must be a list, is {kind(raw[section])}", where=f"{path}: {section}", code="F02")
        for index, item in enumerate(raw[section]):
            if type(item) is not dict:
                raise DataError(f"must be an object, is {kind(item)}", where=f"{path}: {section}[{index}]", code="F02")
    return CocoDocument(path, content, raw["images"], raw["annotations"], raw["categories"], parsed=raw)


def _other_format(raw: Any) -> str | None:
    """Name the well-known format that is not COCO detection, or return None."""
    if isinstance(raw, list):
        first = raw[0] if raw else None
        if isinstance(first, dict) and {"image_id", "score"} <= first.keys():
            return "a results file"
        if isinstance(first, dict) and {"image", "annotations"} <= first.keys():
            return "a CreateML file"
        return None
    if not isinstance(raw, dict):
        return None
    if "shapes" in raw and "imagePath" in raw:
        return "a LabelMe file"
    annotations = raw.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if isinstance(first, dict) and "bbox" not in first:
        if "segments_info" in first:
            return "a panoptic file"
        if "caption" in first:
            return "a captions file"
    return None

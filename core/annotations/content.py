"""What a reader of any format returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.annotations.box_formats import BoxFormat
from core.annotations.findings import Findings
from core.annotations.records import AnnotationSet


@dataclass(frozen=True)
class SplitContent:
    """A split that was read or made: its annotations, its folder of images, and what was noticed."""

    annotations: AnnotationSet
    image_root: Path
    findings: Findings = field(default_factory=Findings)


@dataclass(frozen=True)
class ReadOptions:
    """What a user may have to say about a source, as the source itself does not.

    Attributes:
        one_based: box edges count pixels from 1 (Pascal VOC and CSV).
        boxes: the format of boxes in COCO files, where it is not COCO's own.
        allow_unlisted: leave out annotations of images that a COCO file does not list, however few they are.
        unpack: unpack archives that are read to where they lie; else they are refused, and nothing is written.
    """

    one_based: bool = False
    boxes: BoxFormat = "xywh"
    allow_unlisted: bool = False
    unpack: bool = True


@dataclass(frozen=True)
class Source:
    """A source as read.

    Attributes:
        path: the folder or file.
        format: as `--format` names it.
        splits: content by split name, in the order train, val, test. All have the same categories.
        notes: sentences for the user: what was found, chosen and changed.
    """

    path: Path
    format: str
    splits: Mapping[str, SplitContent]
    notes: tuple[str, ...] = ()

"""Pascal VOC folders: one XML file an image, lists of names for the splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from core.annotations.box_formats import look_normalised
from core.annotations.content import ReadOptions, Source, SplitContent
from core.annotations.faults import FaultLog
from core.annotations.findings import count_findings, refuse
from core.annotations.images import SUFFIXES, require_moderate_size, upright_size
from core.annotations.json_values import text
from core.annotations.records import Annotation, AnnotationSet, Category, ImageRecord
from core.errors import DataError
from core.files import join_within

LISTS = ("train", "val", "test")
"""Names of the splits; `trainval` stands for train where that has no list."""
_XML_FOLDERS = ("Annotations", "annotations", ".")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", ".")
_LARGEST = 1e9


@dataclass(frozen=True)
class _Box:
    class_name: str
    box_xywh_px: tuple[float, float, float, float]
    is_difficult: bool


@dataclass(frozen=True)
class _Picture:
    """One XML file."""

    file_name: str
    width: int
    height: int
    boxes: tuple[_Box, ...]
    num_zero_size: int


def is_voc(source: Path) -> bool:
    """Tell whether a folder looks like Pascal VOC: XML files in Annotations, or beside the images."""
    return _xml_folder(source) is not None


def read_voc(source: Path, options: ReadOptions | None = None, log: FaultLog | None = None) -> Source:
    """Read a Pascal VOC folder: Annotations/*.xml, JPEGImages (or images) and ImageSets/Main/*.txt.

    Classes are sorted by name and get the ids 1 to C, the same in every split. An image is the file that has
    its XML file's stem, else what <filename> says. Its size is what <size> says, or the file's own where that
    is missing or 0.

    Args:
        source: the folder.
        options: with `one_based` 1 is subtracted from all four edges; by default they are taken as written.
        log: is told of XML files and objects that cannot be used; by default the first one is raised.

    Returns:
        Only `train` where the folder has no lists.

    Raises:
        DataError: a file is missing, damaged, or a box in it cannot be right.
    """
    options, log = options or ReadOptions(), log or FaultLog()
    xml_folder = _xml_folder(source)
    if xml_folder is None:
        raise DataError("no Pascal VOC folder: no XML files in Annotations", where=str(source), code="F03")
    image_root = next(
        folder
        for folder in (source / name for name in _IMAGE_FOLDERS)
        if folder.is_dir() and (folder == source or any(_is_image(path) for path in folder.iterdir()))
    )
    xml_of_stem = {path.stem: path for path in _xml_files(xml_folder)}
    images_of_stem: dict[str, list[str]] = defaultdict(list)
    for path in sorted(image_root.iterdir()):
        if _is_image(path):
            images_of_stem[path.stem].append(path.name)
    stems_of_split = _read_lists(source, set(xml_of_stem)) or {"train": list(xml_of_stem)}
    listed = sorted({stem for stems in stems_of_split.values() for stem in stems})
    pictures: dict[str, _Picture] = {}
    stem_of_name: dict[str, str] = {}
    for stem in listed:
        picture = log.attempt(
            _read_picture, xml_of_stem[stem], images_of_stem[stem], image_root, options.one_based, log
        )
        if picture is None:
            continue
        earlier = stem_of_name.setdefault(picture.file_name, stem)
        if earlier == stem:
            pictures[stem] = picture
        else:
            log.invalid(_described_twice(picture.file_name, xml_of_stem[stem], xml_of_stem[earlier]))
    _require_pixels(pictures.values(), xml_folder)
    class_names = sorted({box.class_name for picture in pictures.values() for box in picture.boxes})
    categories = tuple(Category(index, name) for index, name in enumerate(class_names, start=1))
    if not categories:
        raise DataError("no XML file has a box", where=str(xml_folder), code="F13")
    image_ids = {stem: index for index, stem in enumerate(pictures, start=1)}
    splits = {
        split: _content({image_ids[stem]: pictures[stem] for stem in stems if stem in pictures}, categories, image_root)
        for split, stems in stems_of_split.items()
    }
    num_unlisted = len(xml_of_stem) - len(listed)
    notes = (f"XML files that are in no list, left out: {num_unlisted}",) if num_unlisted else ()
    return Source(source, "voc", splits, notes)


def _described_twice(file_name: str, xml: Path, earlier: Path) -> DataError:
    return DataError(
        f"the image {file_name!r} is described already by {earlier.name}",
        where=str(xml),
        hint="put the objects of both into one file",
        code="F04",
    )


def _require_pixels(pictures: Iterable[_Picture], xml_folder: Path) -> None:
    found = [(box.box_xywh_px, (picture.width, picture.height)) for picture in pictures for box in picture.boxes]
    boxes, sizes = (np.array([pair[side] for pair in found], dtype=np.float64) for side in (0, 1))
    if found and look_normalised(boxes, sizes):
        raise DataError(
            "the boxes look normalised to 0 ... 1, not like edges in pixels",
            where=str(xml_folder),
            hint="write xmin, ymin, xmax and ymax in pixels",
            code="F11",
        )


def _xml_folder(source: Path) -> Path | None:
    folders = (source / name for name in _XML_FOLDERS)
    return next((folder for folder in folders if folder.is_dir() and _xml_files(folder)), None)


def _xml_files(folder: Path) -> list[Path]:
    """Return the XML files of a folder; hidden ones are no annotations, but what macOS leaves on other disks."""
    return sorted(path for path in folder.glob("*.xml") if not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _read_lists(source: Path, stems: set[str]) -> dict[str, list[str]]:
    """Return the stems of each split that ImageSets/Main lists, sorted; empty without lists."""
    folder = source / "ImageSets" / "Main"
    files = {split: folder / f"{split}.txt" for split in LISTS if (folder / f"{split}.txt").is_file()}
    if "train" not in files and (folder / "trainval.txt").is_file():
        files = {"train": folder / "trainval.txt", **files}
    lists: dict[str, list[str]] = {}
    for split, file in files.items():
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the list: {error}", where=str(file), code="F01") from error
        # "NAME" or, in lists of one class, "NAME 1"; names may hold spaces.
        names = [line if line in stems else line.split()[0] for line in lines if line]
        unknown = [name for name in names if name not in stems]
        if unknown:
            raise DataError(
                f"{len(unknown)} listed images have no XML file, first: {', '.join(unknown[:5])}",
                where=str(file),
                code="F02",
                places=unknown,
            )
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise DataError(f"{twice!r} is listed twice", where=str(file), code="F04")
        lists[split] = sorted(names)
    return {split: names for split, names in lists.items() if names}


def _read_picture(xml: Path, image_names: list[str], image_root: Path, one_based: bool, log: FaultLog) -> _Picture:
    root = _parse(xml)
    stated_name = (root.findtext("filename") or "").strip()
    if not image_names:
        file_name = stated_name or f"{xml.stem}.jpg"
    else:
        file_name = stated_name if stated_name in image_names else image_names[0]
    text(file_name, f"{xml}: filename")  # a name that is no Unicode cannot be written to a file
    try:
        path = join_within(image_root, file_name)
    except DataError as error:
        raise DataError(error.message, where=f"{xml}: filename", hint=error.hint, code=error.code) from error
    width, height = (
        int(_number(root, f"size/{side}", xml)) if (root.findtext(f"size/{side}") or "").strip() else 0
        for side in ("width", "height")
    )
    if width <= 0 or height <= 0:
        width, height = upright_size(path)
    require_moderate_size(width, height, f"{xml}: size")
    boxes: list[_Box] = []
    num_zero_size = 0
    for index, element in enumerate(root.findall("object")):
        box = log.attempt(_read_box, element, f"object[{index}]", xml, one_based)
        if box is None:
            continue
        left, top, box_width, box_height = box.box_xywh_px
        if box_width == 0 or box_height == 0:
            num_zero_size += 1
        elif left >= width or top >= height or left + box_width <= 0 or top + box_height <= 0:
            reason = f"the box lies wholly outside its image of {width} x {height} pixels"
            log.invalid(refuse(xml, [f"object[{index}].bndbox"], reason, code="F10"))
        else:
            boxes.append(box)
    return _Picture(file_name, width, height, tuple(boxes), num_zero_size)


def _parse(xml: Path) -> Element:
    try:
        root = parse(xml).getroot()
    except ParseError as error:
        line, column = error.position
        raise DataError(
            f"not valid XML: {str(error).partition(':')[0]}",
            where=f"{xml}:{line}:{column + 1}",
            hint="the file may be cut off; copy or export it again",
            code="F01",
        ) from error
    except DefusedXmlException as error:
        raise DataError("XML entities and document types are not read", where=str(xml), code="F01") from error
    except (OSError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise DataError(f"cannot read the XML file: {error}", where=str(xml), code="F01") from error
    if root is None or root.tag != "annotation":
        raise DataError(
            "no Pascal VOC file: its outermost element is not <annotation>",
            where=str(xml),
            code="F03",
        )
    return root


def _read_box(element: Element, place: str, xml: Path, one_based: bool) -> _Box:
    class_name = (element.findtext("name") or "").strip()
    if not class_name:
        raise refuse(xml, [f"{place}.name"], "the class name is missing", code="F17")
    shift = 1 if one_based else 0
    left, top, right, bottom = (
        _number(element, f"bndbox/{edge}", xml, place) - shift for edge in ("xmin", "ymin", "xmax", "ymax")
    )
    if right < left or bottom < top:
        edges = f"{left:g}, {top:g}, {right:g}, {bottom:g}"
        raise refuse(xml, [f"{place}.bndbox"], f"negative width or height: edges {edges}", code="F08")
    is_difficult = (element.findtext("difficult") or "").strip() == "1"
    return _Box(class_name, (left, top, right - left, bottom - top), is_difficult)


def _number(element: Element, path: str, xml: Path, place: str = "") -> float:
    where = ".".join(filter(None, (place, path.replace("/", "."))))
    written = (element.findtext(path) or "").strip()
    if not written:
        raise refuse(xml, [where], "is missing", code="F02")
    try:
        number = float(written)
    except ValueError:
        number = float("nan")
    if not -_LARGEST < number < _LARGEST:
        raise refuse(xml, [where], f"must be a finite number, is {written[:40]!r}", code="F09")
    return number


def _content(pictures: dict[int, _Picture], categories: tuple[Category, ...], image_root: Path) -> SplitContent:
    id_of_class = {category.name: category.id for category in categories}
    images: list[ImageRecord] = []
    annotations: list[Annotation] = []
    for image_id, picture in pictures.items():
        images.append(ImageRecord(image_id, picture.file_name, picture.width, picture.height))
        for box in picture.boxes:
            area = box.box_xywh_px[2] * box.box_xywh_px[3]
            annotations.append(
                Annotation(
                    len(annotations) + 1, image_id, id_of_class[box.class_name], box.box_xywh_px, area, is_crowd=False
                )
            )
    annotation_set = AnnotationSet(tuple(images), tuple(annotations), categories)
    findings = count_findings(
        annotation_set,
        zero_size_boxes=sum(picture.num_zero_size for picture in pictures.values()),
        difficult_boxes=sum(box.is_difficult for picture in pictures.values() for box in picture.boxes),
    )
    return SplitContent(annotation_set, image_root, findings)

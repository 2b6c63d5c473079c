"""Where a YOLO data set has its images, and what its classes are called: by data.yaml, Darknet's lists or folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.annotations.faults import FaultLog
from core.annotations.readers.coco_files import SPLIT_NAMES
from core.annotations.readers.yolo_classes import classes_of_entries, classes_of_files, whole_number
from core.annotations.readers.yolo_lines import read_lines
from core.annotations.readers.yolo_paths import PathFinder, first_images, images_below, is_image, list_folder, read_list
from core.annotations.readers.yolo_yaml import Entry, read_entries
from core.errors import DataError

_YAML_SUFFIXES = (".yaml", ".yml")
_MAIN_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_KEYS = {"path", "names", "nc", "kpt_shape", *(name for names in SPLIT_NAMES.values() for name in names)}
_PEEK_BYTES = 1 << 20


@dataclass(frozen=True)
class SplitImages:
    """Images of a split: names below a folder, with `/` between their parts."""

    image_root: Path
    file_names: Sequence[str]


@dataclass(frozen=True)
class YoloLayout:
    """A data set as far as it is known without its labels and images.

    Attributes:
        classes: names by class id; None if nothing says.
        splits: in the order train, val, test.
        num_key_point_values: numbers that follow every box in the labels.
        notes: sentences for the user.
    """

    classes: Mapping[int, str] | None
    splits: Mapping[str, SplitImages]
    num_key_point_values: int = 0
    notes: tuple[str, ...] = ()


def find_layout(path: Path, log: FaultLog) -> YoloLayout:
    """Find the images and classes of a data set.

    Args:
        path: a folder, a `data.yaml` or an `obj.data`.
        log: is told of images in lists that cannot be used.

    Raises:
        DataError: what describes the data set cannot be used or names what is not there, or there are no images.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links, and show other names
    descriptions = find_descriptions(path)
    if len(descriptions) > 1:
        names = ", ".join(file.name for file in descriptions[:5])
        raise DataError(
            f"several files describe a data set: {names}", where=str(path), hint="name one of them", code="F02"
        )
    layout = _from_yaml(descriptions[0], log) if descriptions else _from_folder(path, log)
    for split, images in layout.splits.items():
        if not images.file_names:
            raise DataError(f"there are no images of the {split} split", where=str(images.image_root), code="F29")
    return layout


def find_descriptions(path: Path) -> list[Path]:
    """Return the YAML files that may describe a data set: this file; or the one in this folder that has a usual name;
    or all others in it that name classes. One of a usual name may name splits alone. The dataset.yaml of
    `prepare-data` is none.
    """
    if path.is_file():
        is_yaml = path.suffix.lower() in _YAML_SUFFIXES
        return [path] if is_yaml and b"format_version" not in _keys_in(path) else []
    files = {file: _keys_in(file) for file in list_folder(path) if file.suffix.lower() in _YAML_SUFFIXES}
    others = [
        file
        for file, keys in files.items()
        if b"format_version" not in keys
        and (keys & {b"names", b"nc"} or (file.name in _MAIN_YAML and {b"train", b"val"} <= keys))
    ]
    usual = [file for name in _MAIN_YAML for file in others if file.name == name]
    return usual[:1] or others


def _keys_in(file: Path) -> set[bytes]:
    """Return which of the keys that matter stand at the start of a line of a YAML file."""
    if not file.is_file():
        return set()
    with file.open("rb") as stream:
        start = stream.read(_PEEK_BYTES).removeprefix(b"\xef\xbb\xbf")
    return set(re.findall(rb"^[\"']?(names|nc|train|val|format_version)[\"']?[ \t]*:", start, re.MULTILINE))


def find_data_file(path: Path) -> Path | None:
    """Return Darknet's `obj.data`: this file, or the one in this folder; None without one."""
    if path.is_file():
        return path if path.suffix == ".data" else None
    usual = [file for file in (path / "obj.data", path / "data" / "obj.data") if file.is_file()]
    others = [file for file in list_folder(path) if file.suffix == ".data" and file.is_file()]
    return usual[0] if usual else others[0] if len(others) == 1 else None


def find_lists(folder: Path) -> dict[str, Path]:
    """Return the lists of images in a folder, such as `train.txt`, by split."""
    lists: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        file = next((file for name in names if _names_images(file := folder / f"{name}.txt")), None)
        if file is not None:
            lists[split] = file
    return lists


def _names_images(file: Path) -> bool:
    """Tell whether a text file begins with the name of an image."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        first = next(iter(stream.read(1 << 12).splitlines()), b"")
    return is_image(first.decode("utf-8", "replace").strip())


def find_split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of images by split: `images/NAME`, `NAME/images` or `NAME`; without them all is train."""
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        candidates = [
            candidate
            for name in names
            for candidate in (folder / "images" / name, folder / name / "images", folder / name)
        ]
        root = next((candidate for candidate in candidates if candidate.is_dir() and first_images(candidate, 1)), None)
        if root is not None:
            found[split] = root
    return found or {"train": next(root for root in (folder / "images", folder) if root.is_dir())}


def _from_yaml(file: Path, log: FaultLog) -> YoloLayout:
    entries = read_entries(file, _KEYS)
    roots, notes = [file.parent], []
    if "path" in entries and (written := _paths(entries["path"])):
        root = Path(os.path.normpath(file.parent / written[0]))
        if "\0" not in written[0] and root.is_dir():
            roots = list(dict.fromkeys((root, file.parent)))
        else:
            notes.append(f"`path` of {file.name} is no folder here, its own folder was used")
    finder = PathFinder(*roots)
    splits: dict[str, SplitImages] = {}
    for split, names in SPLIT_NAMES.items():
        entry = next((entries[name] for name in names if name in entries and _paths(entries[name])), None)
        if entry is None:
            continue
        try:
            found = [finder.find(written, entry.place) for written in _paths(entry)]
        except DataError as error:
            # Exports name a test split whether there is one or not.
            if split != "test" or error.code != "F19":
                raise
            notes.append(f"`test` of {file.name} is not there and was left out")
            continue
        images = _images_of(found, finder, log)
        if images.file_names or split != "test":
            splits[split] = images
    if not splits:
        raise DataError("no key `train`, `val` or `test` names any images", where=str(file), code="F02")
    classes = classes_of_entries(entries.get("names"), entries.get("nc"))
    return YoloLayout(classes, splits, _num_key_point_values(entries.get("kpt_shape")), (*notes, *finder.notes()))


def _paths(entry: Entry) -> list[str]:
    if isinstance(entry.value, dict):
        raise DataError("must be a path, or a list of paths", where=entry.place, code="F02")
    return [word for word in (entry.value if isinstance(entry.value, list) else [entry.value]) if word]


def _num_key_point_values(shape: Entry | None) -> int:
    if shape is None or shape.value is None:
        return 0
    if not isinstance(shape.value, list) or len(shape.value) != 2:
        raise DataError("kpt_shape must be two whole numbers, such as [17, 3]", where=shape.place, code="F02")
    num_points, num_values = (whole_number(word, shape.place) for word in shape.value)
    return num_points * num_values


def _from_folder(path: Path, log: FaultLog) -> YoloLayout:
    folder = path.parent if path.is_file() else path
    finder = PathFinder(folder)
    data_file = find_data_file(path)
    options = _read_data_file(data_file) if data_file else {}
    lists: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        entry = next((options[name] for name in names if name in options), None)
        if entry is not None:
            lists[split] = finder.find(str(entry.value), entry.place)
    lists = lists or find_lists(folder)
    if lists:
        splits = {split: _images_of([file], finder, log) for split, file in lists.items()}
    else:
        splits = {split: _images_of([root], finder, log) for split, root in find_split_folders(folder).items()}
    names_file = finder.find(str(options["names"].value), options["names"].place) if "names" in options else None
    classes = classes_of_files([names_file] if names_file else _class_files(folder), options.get("classes"))
    return YoloLayout(classes, splits, notes=finder.notes())


def _read_data_file(file: Path) -> dict[str, Entry]:
    """Read the lines `key = value` of an `obj.data`."""
    options: dict[str, Entry] = {}
    for line in read_lines(file):
        key, _, value = (part.strip() for part in line.text.partition("="))
        if value:
            options[key] = Entry(value, line.place)
    return options


def _class_files(folder: Path) -> list[Path]:
    """Return all files with a class name a line, wherever tools put them."""
    splits = [folder / name for names in SPLIT_NAMES.values() for name in names]
    places = [folder, *(folder / name for name in ("data", "labels", "images")), *splits]
    places += [split / "labels" for split in splits]
    found: list[Path] = []
    for place in places:
        usual = [place / name for name in ("classes.txt", "obj.names", "_darknet.labels")]
        others = [file for file in list_folder(place) if file.suffix == ".names"]
        found += [file for file in dict.fromkeys((*usual, *others)) if file.is_file()]
    return found


def _images_of(sources: Sequence[Path], finder: PathFinder, log: FaultLog) -> SplitImages:
    """Return the images of a folder; or of several folders and lists, below the folder that holds them all."""
    if len(sources) == 1 and sources[0].is_dir():
        return SplitImages(sources[0], images_below(sources[0]))
    images: list[Path] = []
    for source in sources:
        images += (
            [source / name for name in images_below(source)] if source.is_dir() else read_list(source, finder, log)
        )
    root = _common_folder(images) or sources[0].parent
    return SplitImages(root, [image.relative_to(root).as_posix() for image in dict.fromkeys(images)])


def _common_folder(files: Iterable[Path]) -> Path | None:
    folders = {file.parent for file in files}
    return Path(os.path.commonpath(folders)) if folders else None

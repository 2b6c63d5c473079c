"""The targets of `tests.faults.fuzz`: every reader, the check, subsets, images and the configuration."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from unittest.mock import patch

import scipy.fft  # noqa: F401 - the check loads it when it first needs it, which is not a file's doing
import yaml

from core.annotations.checks.advice import TrainingSettings
from core.annotations.checks.quick import remembered_check
from core.annotations.checks.report import check_source
from core.annotations.content import ReadOptions
from core.annotations.faults import FaultLog
from core.annotations.images import check_image, open_image, open_small_grey, read_header
from core.annotations.prepared import open_dataset, read_split
from core.annotations.readers.table import format_names, read_source
from core.annotations.subsets import describe_subset, find_subset, subsample
from core.api.configuration import resolve_train_config
from core.config.layers import ResolvedConfig, file_layer, resolve
from core.config.presets import preset_names
from core.config.schema import Config
from tests.faults import fuzz_sources as sources
from tests.faults.fuzz import READ, Target, attempt, require_usable, require_useful
from tests.faults.fuzz_mutations import (
    MARKUP,
    NUMBERS,
    WORDS,
    YAML,
    Spoil,
    pick,
    spoil_bytes,
    spoil_json,
    spoil_lines,
    spoil_png,
    spoil_tokens,
)
from tests.faults.fuzz_sources import Tree

_JSON: tuple[Spoil, ...] = (spoil_json, spoil_json, spoil_json, spoil_tokens(quote='"'), spoil_bytes)
_XML: tuple[Spoil, ...] = (spoil_tokens(), spoil_tokens(MARKUP), spoil_lines, spoil_bytes)
_YAML: tuple[Spoil, ...] = (spoil_tokens(YAML), spoil_tokens(YAML), spoil_lines, spoil_bytes)
_TEXT: tuple[Spoil, ...] = (spoil_tokens(), spoil_tokens(), spoil_lines, spoil_bytes)
_PNG: tuple[Spoil, ...] = (spoil_png, spoil_png, spoil_bytes)
_ALL: Mapping[str, tuple[Spoil, ...]] = {
    ".json": _JSON, ".xml": _XML, ".yaml": _YAML, ".txt": _TEXT, ".data": _TEXT, ".names": _TEXT, ".csv": _TEXT,
    ".png": _PNG, ".jpg": (spoil_bytes,),
}  # fmt: skip


_OPTIONS = (*[ReadOptions()] * 10, ReadOptions(one_based=True), ReadOptions(allow_unlisted=True))
"""Most formats refuse both of the latter."""
_SETTINGS = TrainingSettings("dela-detr", 2, 2, None, 64, 100, 8, 1)


def use_source(root: Path, random: Random, *, name: str = "", format_name: str | None = None) -> str:
    """Read a source twice, refusing what cannot be used and leaving it out."""
    options = pick(random, _OPTIONS)
    path = root / name

    def read() -> None:
        require_usable(read_source(path, format_name, options, FaultLog()), root.parent)

    def read_what_can_be_used() -> None:
        log = FaultLog(drops=True)
        source = read_source(path, format_name, options, log)
        for fault in log.faults:
            require_useful(fault)
        if outcome == READ:
            assert not log.faults, "faults are dropped that are not refused"
        require_usable(source, root.parent)

    outcome = attempt(read)
    dropping = attempt(read_what_can_be_used)
    assert outcome != READ or dropping == READ
    return outcome


def use_archive(root: Path, random: Random) -> str:
    """Read an archive, and look that nothing is written elsewhere."""
    before = set(root.parent.rglob("*"))
    outcome = use_source(root, random, name="set.zip")
    new = set(root.parent.rglob("*")) - before - {root.parent / "again.json"}
    assert all(path.is_relative_to(root / "set") for path in new), "written outside"
    assert not any(path.is_symlink() for path in new)
    return outcome


def use_path(root: Path, random: Random) -> str:
    """Read a source of a name that somebody mistyped."""
    words = json.loads((root / "words.json").read_bytes())
    path, format_name = root / words[0], words[1]
    attempt(lambda: check_source(path, format_name))
    attempt(lambda: open_dataset(path))
    return attempt(lambda: read_source(path, format_name, ReadOptions(unpack=random.randrange(2) == 0)))


def use_check(root: Path, random: Random) -> str:
    """Check a source: whatever is wrong with it stands in the report."""
    report = check_source(
        root,
        strict=random.randrange(2) == 0,
        near_duplicates=random.randrange(3) > 0,
        settings=pick(random, (None, _SETTINGS)),
    )
    for fault in report.faults:
        require_useful(fault)
    errors = [fault for fault in report.faults if fault.severity == "error"]
    assert report.num_errors == sum(fault.count for fault in errors)
    assert report.format is not None or errors
    return errors[0].code if errors else READ


def use_prepared(root: Path, random: Random) -> str:
    """Open a prepared data set, as every command does, and read it as a source."""

    def read() -> None:
        dataset = open_dataset(root)
        for split in dataset.splits:
            read_split(dataset, split, log=FaultLog(drops=random.randrange(2) == 0))

    attempt(read)
    return use_source(root, random, format_name=pick(random, (None, "prepared")))


def use_subset(root: Path, random: Random) -> str:
    """Find a subset, say what it is, read it, and make it again from its manifest."""
    dataset = open_dataset(root)
    file = root / "annotations" / "train-50pct-seed0.json"
    manifest = file.with_name("train-50pct-seed0.manifest.json")

    def read(name: str) -> None:
        found = find_subset(dataset, name)
        describe_subset(found)
        read_split(dataset, "train", found)

    outcome = attempt(lambda: read("0.5"))
    others = (str(file), *WORDS, *NUMBERS, "2shot", "4images", "fold1of2", "50pct-seed0")
    attempt(lambda: read(pick(random, others)))
    for source in (manifest, file):
        attempt(partial(subsample, dataset, from_manifest=source, dry_run=random.randrange(4) > 0))
    attempt(lambda: describe_subset(file))
    return outcome


def use_image(root: Path, random: Random) -> str:
    """Look at an image in every way."""
    path = next(iter(root.iterdir()))
    sizes: list[tuple[int, int]] = [(16, 12), (12, 16), (1, 1)]
    attempt(lambda: sizes.insert(0, read_header(path)[:2]))
    size = pick(random, (sizes[0], sizes[0], *sizes))
    attempt(lambda: open_small_grey(path, 8, size))

    def read() -> None:
        image = open_image(path, size)
        assert (image.mode, image.size) == ("RGB", size)

    outcome = attempt(read)
    checked = attempt(lambda: check_image(path, size))
    assert outcome != READ or checked == READ, "the check refuses an image that can be opened"
    return outcome


def use_memory_of_checks(root: Path, random: Random) -> str:
    """Spoil what the quick check remembers: a good image stays good, and a bad one bad."""
    good, bad = root / "good.png", root / "bad.png"
    with patch.dict(os.environ, {"XDG_CACHE_HOME": str(root.parent / "cache")}):
        with remembered_check(root) as check:
            check(good, (16, 12))
        (file,) = (root.parent / "cache").rglob("*.json")
        file.write_bytes(pick(random, _JSON)(random, file.read_bytes()))
        with remembered_check(root) as check:
            assert attempt(lambda: check(good, (16, 12))) == READ
            assert attempt(lambda: check(bad, (16, 12))) != READ
    return READ


def use_config(root: Path, random: Random) -> str:
    """Lay a file, variables and assignments over a preset or a recipe."""
    file = root / "config.yaml"
    spoken = json.loads((root / "spoken.json").read_bytes()) if (root / "spoken.json").is_file() else {}
    preset = pick(random, ("none", "none", "none", None, *preset_names(), *WORDS))

    def read() -> None:
        resolved = resolve_train_config(
            config_file=file if file.exists() else None,
            environment=spoken.get("environment", {}),
            assignments=spoken.get("assignments", ()),
            preset=preset,
            flags={("data", "root"): ("--data", str(root))} if preset is None else {},
        )
        for setting in resolved.settings():
            repr(setting.value)
        if random.randrange(8) == 0:
            _require_same_again(resolved, root)

    return attempt(read)


def _require_same_again(resolved: ResolvedConfig, root: Path) -> None:
    """Check that a run's config.yaml says the same."""
    saved = root / "saved.yaml"
    saved.write_text(yaml.safe_dump(resolved.config.model_dump()), encoding="utf-8")
    again = resolve([file_layer(saved)], lambda _: {}).config
    assert again == resolved.config


def _archive() -> Tree:
    return {"set.zip": sources.zipped(sources.voc(), "VOC/")}


def _archive_of_coco() -> Tree:
    return {"set.zip": sources.zipped(sources.coco_layout())}


def spoil_archive(random: Random, content: bytes) -> bytes:
    """Rename, repeat, spoil or mark files in an archive, or damage its bytes, its directory above all."""
    action = random.randrange(5)
    if action == 0:
        return spoil_bytes(random, content)
    if action == 1:
        marks = [found.start() for found in re.finditer(rb"PK(?:\x01\x02|\x03\x04|\x05\x06)", content)]
        start = pick(random, marks)
        return content[:start] + spoil_bytes(random, content[start : start + 46]) + content[start + 46 :]
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as opened, zipfile.ZipFile(stream, "w") as archive:
        infos = opened.infolist()
        place = random.randrange(len(infos))
        for index, info in enumerate(infos):
            body = opened.read(info)
            if index == place:
                with suppress(ValueError, OverflowError), warnings.catch_warnings():  # a name that cannot be written
                    warnings.simplefilter("ignore")  # a name twice
                    _write_spoilt(random, archive, info, body)
            else:
                archive.writestr(info, body)
    return stream.getvalue()


def _write_spoilt(random: Random, archive: zipfile.ZipFile, info: zipfile.ZipInfo, body: bytes) -> None:
    action = random.randrange(6)
    if action == 0:
        info.filename = pick(random, WORDS)
    elif action == 1:
        info.filename += pick(random, ("/", "/../x", "\\..\\..\\x", "\0.txt", " ", "."))
    elif action == 2:
        info.external_attr = pick(random, (0o120777, 0o020666, 0o010666, 0o040755, 0o104777)) << 16
        body = pick(random, (b"/etc/passwd", body))
    elif action == 3:
        info.compress_type = pick(random, (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED))
    elif action == 4:
        spoils = next(spoils for end, spoils in _ALL.items() if info.filename.endswith(end))
        body = pick(random, spoils)(random, body)
    else:
        archive.writestr(info, body)
    archive.writestr(info, body)


def _image(name: str) -> Callable[[], Tree]:
    return lambda: {name: sources.images()[name]}


def _good_and_bad() -> Tree:
    return {"good.png": sources.images()["rgb.png"], "bad.png": sources.images()["rgb.png"][:60]}


_DEFAULTS = {
    f"{section}.{key}": value for section, keys in Config().model_dump().items() for key, value in keys.items()
}


def spoil_spoken(random: Random, content: bytes) -> bytes:
    """Say something: assignments and variables, of keys that are there or nearly."""

    assignments: list[str] = []
    environment: dict[str, str] = {}
    for _ in range(pick(random, (1, 1, 2, 5))):
        key = pick(random, list(_DEFAULTS))
        value = json.dumps(_DEFAULTS[key]) if random.randrange(3) == 0 else pick(random, (*YAML, *NUMBERS, *WORDS))
        if random.randrange(8) == 0:
            key = spoil_tokens()(random, key.encode()).decode("utf-8", "replace")
        assignments.append(f"{key}={value}" if random.randrange(20) else value)
        environment[f"DEDETR_{key.upper().replace('.', '__')}"] = value
    spoken: dict[str, object] = {"assignments": assignments, "environment": environment}
    del spoken[pick(random, list(spoken))]
    return json.dumps(spoken).encode()


def spoil_path(random: Random, content: bytes) -> bytes:
    """Name a source and a format."""
    name = pick(random, WORDS) if random.randrange(3) else pick(random, ("", "JPEGImages", "Annotations/a0.xml"))
    return json.dumps([name, pick(random, (None, None, *format_names(), "vocc", "", "\ud800"))]).encode()


_SMALL = b"model: {name: detr, num_queries: 30}\nrun:\n  seed: 7\nschedule:\n  epochs: 5\ndata: {short_side: 64}\n"


def _config_file() -> Tree:
    return {"config.yaml": sources.config_file()}


def _small_config_file() -> Tree:
    return {"config.yaml": _SMALL}


def _prepared_with_words() -> Tree:
    return {**sources.prepared(), "spoken.json": b"{}"}


def _voc_and_words() -> Tree:
    return {**sources.voc(), "words.json": b'["", null]'}


_CONFIG_FILES = (_config_file, *[_small_config_file] * 5)
_IMAGES = tuple(_image(name) for name in sources.images())
_EVERY_SOURCE = (
    sources.coco_layout, sources.cityscapes_in_coco_form, sources.voc, sources.yolo_yaml,
    sources.yolo_poses, sources.yolo_lists, sources.csv_header, sources.csv_extents, sources.csv_retinanet,
    sources.cityscapes, sources.per_split, sources.prepared,
)  # fmt: skip

TARGETS = (
    Target("COCO: one file", (sources.coco_file,), {".json": _JSON}, partial(use_source, name="set.json")),
    Target("COCO: folders", (sources.coco_layout,), {".json": _JSON}, use_source),
    Target("Cityscapes: COCO form", (sources.cityscapes_in_coco_form,), {".json": _JSON}, use_source),
    Target("Cityscapes: polygons", (sources.cityscapes,), {"polygons.json": _JSON}, use_source),
    Target("Cityscapes: instance images", (sources.cityscapes,), {"instanceIds.png": _PNG}, use_source, 0),
    Target("Pascal VOC: XML", (sources.voc,), {".xml": _XML}, use_source),
    Target("Pascal VOC: lists", (sources.voc,), {".txt": _TEXT}, use_source),
    Target("YOLO: labels", (sources.yolo_yaml, sources.yolo_poses, sources.yolo_lists), {"a.txt": _TEXT}, use_source),
    Target("YOLO: data.yaml", (sources.yolo_yaml, sources.yolo_poses), {".yaml": _YAML}, use_source),
    Target(
        "YOLO: Darknet's lists",
        (sources.yolo_lists,),
        dict.fromkeys((".data", ".names", "train.txt", "valid.txt"), _TEXT),
        use_source,
    ),
    Target("CSV: header", (sources.csv_header, sources.csv_extents), {".csv": _TEXT}, use_source),
    Target("CSV: RetinaNet", (sources.csv_retinanet,), {".csv": _TEXT}, use_source),
    Target("per split", (sources.per_split,), {".json": _JSON, ".csv": _TEXT}, use_source),
    Target("prepared: dataset.yaml", (sources.prepared,), {"dataset.yaml": _YAML}, use_prepared),
    Target("ZIP archives", (_archive, _archive_of_coco), {".zip": (spoil_archive,)}, use_archive, 0),
    Target("names of sources", (_voc_and_words,), {".json": (spoil_path,)}, use_path, 0),
    Target("prepare-data --check", _EVERY_SOURCE, _ALL, use_check, 0.4),
    Target("memory of checks", (_good_and_bad,), {}, use_memory_of_checks, 0),
    Target("subsets", (sources.prepared,), {"pct-seed0.manifest.json": _JSON, "pct-seed0.json": _JSON}, use_subset, 0),
    Target("images", _IMAGES, {".png": _PNG, "": (spoil_bytes,)}, use_image, 0),
    Target("configuration: file", _CONFIG_FILES, {".yaml": _YAML}, use_config, 0),
    Target("configuration: --set, variables", (_prepared_with_words,), {"spoken.json": (spoil_spoken,)}, use_config, 0),
)

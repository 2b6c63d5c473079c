"""Random subsets of the train split: made once, written with a manifest, found again by their rate.

Subsets of one seed are nested: the images of 1 % are among those of 2 %, and so on. A subset of rate r has
floor(r * N) images, at least one, which are the paper's 1182, 2365, 5914 and 11828 of COCO's 118287.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from core.annotations.coco import check_coco
from core.annotations.coco_document import read_document
from core.annotations.json_values import load_json
from core.annotations.prepared import get_split, require_same_classes
from core.annotations.records import PreparedDataset
from core.errors import DataError, UsageError
from core.files import sha256_of, write_atomic, write_json

RULE = "image ids sorted, shuffled by random.Random(seed), the first floor(rate * N), at least 1"
_SPLIT = "train"
_MANIFEST_SUFFIX = ".manifest.json"


@dataclass(frozen=True)
class SubsetReport:
    """What `subsample` wrote.

    Attributes:
        path: the subset's annotation file.
        manifest: the file that says how it was made.
        rate: the share of images, in (0, 1].
        seed: of the choice.
        num_images: images in the subset.
        num_parent_images: images in the whole train split.
        num_annotations: annotations in the subset, crowds included.
        class_counts: boxes by class name, 0 where the subset has none.
    """

    path: Path
    manifest: Path
    rate: float
    seed: int
    num_images: int
    num_parent_images: int
    num_annotations: int
    class_counts: Mapping[str, int]


class SubsetManifest(BaseModel):
    """How a subset file was made; stands beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format_version: Literal[1] = 1
    rate: float
    seed: int
    rule: str
    parent: str
    parent_sha256: str
    num_parent_images: int
    subset_sha256: str
    num_annotations: int
    class_counts: dict[str, int]
    image_ids: list[int]


def subsample(dataset: PreparedDataset, rate: float, seed: int = 0, out: Path | None = None) -> SubsetReport:
    """Write a random part of the train split as an annotation file, with its manifest beside it.

    Everything that the train file says of the chosen images stays, keys that dedetr does not read too. Equal
    inputs give equal bytes.

    Args:
        dataset: its train split is taken.
        rate: the share of images, in (0, 1].
        seed: of the choice, not negative.
        out: the file to write, or a folder; by default beside the train file, where `find_subset` looks.

    Raises:
        UsageError: rate or seed are out of range, or `out` is a file that `subsample` did not make.
        DataError: the train file has a fault.
        MachineError: the file cannot be written.
    """
    check_rate(rate)
    if seed < 0:
        raise UsageError(f"must not be negative, is {seed}", where="--seed")
    split = get_split(dataset, _SPLIT)
    parent = split.annotation_file
    path = _target(parent, rate, seed, out)
    document = read_document(parent)
    annotations, _ = check_coco(document, split.image_root)
    require_same_classes(dataset.classes, annotations.categories, str(dataset.root), str(parent))
    if not annotations.images:
        raise DataError("the train split has no images", where=str(parent))
    image_ids = [image.id for image in annotations.images]
    chosen = _choose(image_ids, rate, seed)
    images = [row for row, image_id in enumerate(image_ids) if image_id in chosen]
    entries: list[int] = []
    counts: Counter[int] = Counter()
    for row in range(len(document.annotations)):
        image_id, category_id = document.references(row)
        if image_id in chosen:
            entries.append(row)
            counts[category_id] += 1
    written = document.with_entries(images, entries)
    write_atomic(path, written)
    manifest = SubsetManifest(
        rate=rate,
        seed=seed,
        rule=RULE,
        parent=parent.name,
        parent_sha256=hashlib.sha256(document.content).hexdigest(),
        num_parent_images=len(image_ids),
        subset_sha256=hashlib.sha256(written).hexdigest(),
        num_annotations=len(entries),
        class_counts={category.name: counts[category.id] for category in annotations.categories},
        image_ids=[image_ids[row] for row in images],
    )
    write_json(_manifest_path(path), manifest.model_dump())
    return _report(path, manifest)


def check_rate(rate: float, flag: str = "--rate") -> None:
    """Check that a share of images is in (0, 1].

    Raises:
        UsageError: it is not; names the flag.
    """
    if not 0 < rate <= 1:
        raise UsageError(f"the rate must be in (0, 1], is {rate:g}", where=flag, hint="0.05 is 5 %")


def find_subset(dataset: PreparedDataset, subset: str) -> Path:
    """Return the annotation file that `train --subset` names.

    Args:
        dataset: the data set that the subset is of.
        subset: a rate such as "0.05", whose subset lies beside the train file, or a file. A file without a
            manifest (the reference's own subsets, say) is taken as it is.

    Raises:
        UsageError: the rate is out of range.
        DataError: there is no such subset, there are several (of different seeds), or the train file or the
            subset was changed after the subset had been made.
    """
    parent = get_split(dataset, _SPLIT).annotation_file
    try:
        rate = float(subset)
    except ValueError:
        path = _named_file(subset, parent)
    else:
        check_rate(rate, "--subset")
        path = _file_of_rate(dataset, rate, parent)
    if _manifest_path(path).is_file():
        _check_hashes(path, parent)
    return path


def describe_subset(path: Path) -> str:
    """Say in one line what a subset file holds: "5 % of train, seed 0: 12 of 240 images, 31 annotations".

    Raises:
        DataError: the file or its manifest cannot be read.
    """
    if not _manifest_path(path).is_file():
        return f"{path.name}, a subset file without a manifest"
    manifest = read_manifest(path)
    return (
        f"{_percent(manifest.rate)} % of {_SPLIT}, seed {manifest.seed}: {len(manifest.image_ids)} of "
        f"{manifest.num_parent_images} images, {manifest.num_annotations} annotations"
    )


def read_manifest(path: Path) -> SubsetManifest:
    """Read the manifest beside a subset file.

    Raises:
        DataError: it is missing or damaged.
    """
    manifest = _manifest_path(path)
    raw = load_json(manifest)
    try:
        return SubsetManifest.model_validate(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        raise DataError(
            f"not a subset's manifest: {'.'.join(map(str, fault['loc']))}: {fault['msg']}",
            where=str(manifest),
            hint="run `dedetr subsample` again",
        ) from error


def _choose(image_ids: list[int], rate: float, seed: int) -> set[int]:
    shuffled = sorted(image_ids)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - no secret
    # The decimal that was typed, not its binary neighbour: 0.29 of 100 images are 29.
    num_chosen = max(1, int(Fraction(repr(rate)) * len(shuffled)))
    return set(shuffled[:num_chosen])


def _target(parent: Path, rate: float, seed: int, out: Path | None) -> Path:
    name = f"{_stem(parent, rate)}{seed}.json"
    path = parent.with_name(name) if out is None else out / name if out.is_dir() else out
    if out is None or not path.exists() or _manifest_path(path).is_file():
        return path
    raise UsageError(
        "the file exists, and `subsample` did not make it", where=str(path), hint="name another file with --out"
    )


def _stem(parent: Path, rate: float) -> str:
    return f"{parent.stem}-{_percent(rate)}pct-seed"


def _percent(rate: float) -> str:
    """Write a rate in percent with all its digits and no more: 0.05 -> 5, 0.125 -> 12.5."""
    percent = f"{Decimal(repr(rate)) * 100:f}"
    return percent.rstrip("0").rstrip(".") if "." in percent else percent


def _manifest_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".json") + _MANIFEST_SUFFIX)


def _report(path: Path, manifest: SubsetManifest) -> SubsetReport:
    return SubsetReport(
        path,
        _manifest_path(path),
        manifest.rate,
        manifest.seed,
        len(manifest.image_ids),
        manifest.num_parent_images,
        manifest.num_annotations,
        manifest.class_counts,
    )


def _named_file(subset: str, parent: Path) -> Path:
    candidates = (Path(subset), parent.parent / subset)
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise DataError(
            f"no subset file {subset}, neither here nor in {parent.parent}",
            where="--subset",
            hint="name a file that `dedetr subsample` made, or a rate such as 0.05",
        )
    return path


def _file_of_rate(dataset: PreparedDataset, rate: float, parent: Path) -> Path:
    pattern = re.compile(re.escape(_stem(parent, rate)) + r"\d+\.json")
    found = sorted(path for path in parent.parent.iterdir() if pattern.fullmatch(path.name))
    if not found:
        raise DataError(
            f"there is no subset of rate {rate:g} beside {parent}", where="--subset", hint=_command(dataset, rate)
        )
    if len(found) > 1:
        raise DataError(
            f"there are {len(found)} subsets of rate {rate:g}: {', '.join(path.name for path in found)}",
            where="--subset",
            hint=f"name one of them: --subset {found[0]}",
        )
    if not _manifest_path(found[0]).is_file():
        raise DataError("the subset's manifest is missing", where=str(found[0]), hint=_command(dataset, rate))
    return found[0]


def _check_hashes(path: Path, parent: Path) -> None:
    manifest = read_manifest(path)
    hint = "run `dedetr subsample` again"
    if manifest.parent_sha256 != sha256_of(parent):
        raise DataError(
            f"the subset was made from another {manifest.parent} than {parent} is now", where=str(path), hint=hint
        )
    if manifest.subset_sha256 != sha256_of(path):
        raise DataError("the subset file was changed after it had been made", where=str(path), hint=hint)


def _command(dataset: PreparedDataset, rate: float) -> str:
    data = "" if dataset.root == Path("data") else f" --data {dataset.root}"
    return f"run `dedetr subsample --rate {rate!r}{data}`"

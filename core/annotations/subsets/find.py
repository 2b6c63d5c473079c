"""The subset that `train --subset` names."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from core.annotations.prepared import get_split
from core.annotations.records import PreparedDataset
from core.annotations.subsets.manifest import manifest_path, read_manifest
from core.annotations.subsets.selection import check_rate, percent
from core.errors import DataError
from core.files import sha256_of

_NAME = re.compile(
    r"(?:(?P<shots>\d+)-?shots?|(?P<images>\d+)-?images?|(?P<percent>\d+(?:\.\d+)?)pct|fold\d+of(?P<folds>\d+)(?:-heldout)?)"
    r"(?P<stratified>-stratified)?(?P<seed>-seed\d+)?",
    re.ASCII,
)


def find_subset(dataset: PreparedDataset, subset: str) -> Path:
    """Return the annotation file that `train --subset` names.

    Args:
        dataset: the data set that the subset is of.
        subset: a rate such as "0.05", or a name such as "10shot", "100images", "fold1of5" or "5pct-stratified-seed3",
            whose subset lies beside the train file; or a file. A file without a manifest (the reference's own
            subsets, say) is taken as it is.

    Raises:
        UsageError: the rate is out of range.
        DataError: there is no such subset, there are several (of different seeds, say), or the train file or the
            subset was changed after the subset had been made.
    """
    parent = get_split(dataset, "train").annotation_file
    try:
        rate = float(subset)
    except ValueError:
        path = _named(dataset, subset, parent)
    else:
        check_rate(rate, "--subset")
        path = _made(dataset, f"of rate {rate:g}", f"{percent(rate)}pct(?:-stratified)?-seed\\d+", f"--rate {rate!r}")
    if manifest_path(path).is_file():
        _check_hashes(path, parent)
    return path


def describe_subset(path: Path) -> str:
    """Say in one line what a subset file holds: "5 % of train, seed 0: 12 of 240 images, 31 annotations".

    Raises:
        DataError: the file or its manifest cannot be read.
    """
    if not manifest_path(path).is_file():
        return f"{path.name}, a subset file without a manifest"
    manifest = read_manifest(path)
    return (
        f"{manifest.selection.words}: {len(manifest.image_ids)} of "
        f"{manifest.num_parent_images} images, {manifest.num_annotations} annotations"
    )


def _named(dataset: PreparedDataset, subset: str, parent: Path) -> Path:
    # os.path, as Path raises for names that are too long for any file.
    file = next((file for file in (Path(subset), parent.parent / subset) if os.path.isfile(file)), None)  # noqa: PTH113
    if file is not None:
        return file
    name = _NAME.fullmatch(subset)
    if name is None:
        raise DataError(
            f"no subset file {subset}, neither here nor in {parent.parent}",
            where="--subset",
            hint="name a file that `dedetr subsample` made, a rate such as 0.05, or what it is: 10shot, 100images",
        )
    if name["shots"]:
        what, flag = f"{name['shots']}shot", f"--shots {name['shots']}"
    elif name["images"]:
        what, flag = f"{name['images']}images", f"--num-images {name['images']}"
    elif name["percent"]:
        what, flag = f"{name['percent']}pct", f"--rate {float(name['percent']) / 100!r}"
    else:
        what, flag = re.sub("(-stratified)?(-seed.*)?$", "", subset), f"--folds {name['folds']}"
    stratified, seed = name["stratified"] or "(?:-stratified)?", name["seed"] or r"-seed\d+"
    flag += " --stratify" if name["stratified"] else ""
    flag += f" --seed {name['seed'].removeprefix('-seed')}" if name["seed"] else ""
    return _made(dataset, subset, f"{re.escape(what)}{stratified}{seed}", flag)


def _made(dataset: PreparedDataset, what: str, pattern: str, flags: str) -> Path:
    """Return the file beside the train file whose name goes on like the pattern; `flags` would make it."""
    parent = get_split(dataset, "train").annotation_file
    data = "" if dataset.root == Path("data") else f" --data {shlex.quote(str(dataset.root))}"
    command = f"run `dedetr subsample {flags}{data}`"
    whole = re.compile(f"{re.escape(parent.stem)}-{pattern}\\.json")
    found = sorted(path for path in parent.parent.iterdir() if whole.fullmatch(path.name))
    if not found:
        raise DataError(f"there is no subset {what} beside {parent}", where="--subset", hint=command)
    if len(found) > 1:
        raise DataError(
            f"there are {len(found)} subsets {what}: {', '.join(path.name for path in found)}",
            where="--subset",
            hint=f"name one of them: --subset {found[0]}",
        )
    if not manifest_path(found[0]).is_file():
        raise DataError("the subset's manifest is missing", where=str(found[0]), hint=command)
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

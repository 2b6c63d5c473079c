"""What stands beside a subset file: how it was made, from what, and which images it has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from core.annotations.coco_document import fields_of, read_document
from core.annotations.json_values import load_json, read_bytes, whole
from core.annotations.subsets.selection import Selection
from core.errors import DataError, UsageError

_SUFFIX = ".manifest.json"


class SubsetManifest(BaseModel):
    """How a subset file was made; stands beside it.

    Version 1 knows rates alone, version 2 every `Selection`, whose attributes stand here by their names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format_version: Literal[1, 2]
    rate: float | None = None
    num_images: int | None = None
    shots: int | None = None
    fold: int | None = None
    num_folds: int | None = None
    held_out: bool = False
    source: str | None = None
    stratified: bool = False
    seed: int | None = None
    rule: str
    parent: str
    parent_sha256: str
    num_parent_images: int
    subset_sha256: str
    num_annotations: int
    class_counts: dict[str, int]
    image_ids: list[int]

    @model_validator(mode="after")
    def _says_one_thing(self) -> SubsetManifest:
        try:
            self.selection.check()
        except UsageError as error:
            raise ValueError(str(error)) from error
        if (self.fold is None) != (self.num_folds is None) or not 1 <= (self.fold or 1) <= (self.num_folds or 1):
            raise ValueError("fold and num_folds contradict each other")
        if len(set(self.image_ids)) < len(self.image_ids):
            raise ValueError("image_ids: an id stands there twice")
        return self

    @property
    def selection(self) -> Selection:
        """What the subset is."""
        return Selection(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Selection)})

    def to_json(self) -> dict[str, Any]:
        """Return what is written: without what does not apply."""
        return {key: value for key, value in self.model_dump().items() if value is not None and value is not False}


def format_version_of(selection: Selection) -> Literal[1, 2]:
    """Return the lowest version that can say it, so that older releases read as much as they can."""
    return 1 if selection.rate is not None and not selection.stratified else 2


def manifest_path(path: Path) -> Path:
    """Return where the manifest of a subset file stands."""
    return path.with_name(path.name.removesuffix(".json") + _SUFFIX)


def read_manifest(path: Path) -> SubsetManifest:
    """Read the manifest beside a subset file.

    Raises:
        DataError: it is missing or damaged.
    """
    return _parse(manifest_path(path), "run `dedetr subsample` again")


def read_selection(path: Path) -> tuple[Selection, list[int], str | None]:
    """Read which images a manifest names, or a COCO file (the reference's own subsets, say).

    Returns:
        What the subset is, the ids of its images, and the SHA-256 of the file that they were chosen from, if known.

    Raises:
        DataError: it is neither, is missing or is damaged.
    """
    try:
        msgspec.json.decode(read_bytes(path), type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Selection(source=path.name, seed=None), _ids_of_coco(path), None
    manifest = _parse(path, "name a manifest that `dedetr subsample` made, or a COCO file")
    return manifest.selection, manifest.image_ids, manifest.parent_sha256


class _Manifest(msgspec.Struct):
    """What no COCO file has."""

    image_ids: msgspec.Raw


def _parse(path: Path, hint: str) -> SubsetManifest:
    try:
        return SubsetManifest.model_validate(load_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise DataError(
            f"not a subset's manifest: {f'{place}: ' if place else ''}{fault['msg']}", where=str(path), hint=hint
        ) from error


def _ids_of_coco(path: Path) -> list[int]:
    entries = read_document(path).images
    ids = [whole(fields_of(entry).get("id"), f"{path}: images[{index}].id") for index, entry in enumerate(entries)]
    return list(dict.fromkeys(ids))

"""Small YOLO data sets, and what was read of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.annotations.content import Source
from core.annotations.faults import TITLES
from core.annotations.readers.yolo import read_yolo
from core.annotations.records import BoxXYWH
from core.errors import DataError

W, H = 40, 30
W, H = 40, 30
LINE = "0 0.5 0.5 0.25 0.2\n"
BOX = (15.0, 12.0, 10.0, 6.0)
YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def put(root: Path, files: Mapping[str, Any]) -> Path:
    """Write text files, and an image for every name that ends in .png or .jpg, its content being its colour."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg") and isinstance(content, str):
            Image.new("RGB", (W, H), content or "red").save(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def labelled(*stems: str, line: str = LINE) -> dict[str, str]:
    """Images such as images/train/a.png and their labels in labels/."""
    images = {f"{stem}.png": "" for stem in stems}
    return {**images, **{f"{stem.replace('images', 'labels')}.txt": line for stem in stems}}


def ultralytics(root: Path, line: str = LINE, description: str | bytes = YAML) -> Path:
    files = {**labelled("images/train/a", "images/val/v"), **labelled("images/train/b", line=line)}
    return put(root, {**files, "data.yaml": description})


def names_of(source: Source) -> dict[str, list[str]]:
    return {split: [image.file_name for image in c.annotations.images] for split, c in source.splits.items()}


def boxes_of(source: Source, split: str = "train") -> dict[str, list[tuple[str, BoxXYWH]]]:
    content = source.splits[split].annotations
    class_names = {category.id: category.name for category in content.categories}
    found = content.by_image()
    return {i.file_name: [(class_names[a.category_id], a.box_xywh_px) for a in found[i.id]] for i in content.images}


def refused(path: Path, code: str, *parts: str) -> DataError:
    with pytest.raises(DataError) as raised:
        read_yolo(path)
    error = raised.value
    assert error.code == code
    assert error.code in TITLES
    for part in parts:
        assert part in str(error)
    return error

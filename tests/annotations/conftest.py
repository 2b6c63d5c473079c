"""Small real data sets in temporary folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CocoDict = dict[str, Any]


def coco_dict(num_images: int = 4, first_id: int = 1, size: tuple[int, int] = (40, 30)) -> CocoDict:
    """A valid COCO detection file: two boxes an image, none on the last; category ids with a gap."""
    images = [
        {"id": first_id + i, "file_name": f"{first_id + i:03d}.png", "width": size[0], "height": size[1], "license": 1}
        for i in range(num_images)
    ]
    annotations = []
    for image in images[:-1]:
        for category_id in (3, 7):
            ident = 100 * first_id + len(annotations)
            annotations.append(
                {
                    "id": ident,
                    "image_id": image["id"],
                    "category_id": category_id,
                    "bbox": [2 + category_id, 4, 10.5, 6],
                    "area": 50.0,
                    "iscrowd": 0,
                    "segmentation": [[1, 2, 3, 4, 5, 6]],
                }
            )
    categories = [{"id": 3, "name": "cat", "supercategory": "none"}, {"id": 7, "name": "dog"}]
    return {
        "info": {"year": 2024},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def write_images(folder: Path, content: CocoDict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        # Every picture has its own colour, so that no two files are equal.
        colour = (image["id"] % 256, image["id"] // 256, 77)
        Image.new("RGB", (image["width"], image["height"]), colour).save(folder / image["file_name"])


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def make_coco_layout(root: Path, num_train: int = 5, num_val: int = 3) -> Path:
    for split, content in (("train", coco_dict(num_train)), ("val", coco_dict(num_val, first_id=500))):
        write_json(root / "annotations" / f"instances_{split}2017.json", content)
        write_images(root / f"{split}2017", content)
    return root


def make_cityscapes_layout(root: Path, annotation_folder: Path) -> Path:
    for split, content in (("train", coco_dict(4)), ("val", coco_dict(2, first_id=500))):
        for image in content["images"]:
            image["file_name"] = f"aachen/{image['file_name']}"
        write_json(annotation_folder / f"cityscapes_{split}_cocostyle.json", content)
        (root / "leftImg8bit" / split / "aachen").mkdir(parents=True)
        write_images(root / "leftImg8bit" / split, content)
    return root


def voc_xml(
    name: str,
    boxes: list[tuple[str, Any, Any, Any, Any]],
    size: tuple[Any, Any] | None = (40, 30),
    difficult: int = 0,
) -> str:
    sizes = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    objects = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult>"
        f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
        f"<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        "</object>"
        for label, x1, y1, x2, y2 in boxes
    )
    return f"<annotation><filename>{name}</filename>{sizes}{objects}</annotation>"


def make_voc(root: Path, lists: dict[str, list[str]] | None = None, num_images: int = 6) -> Path:
    """Images a0 ... with one box each; `zebra` stands on a0 only."""
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for index in range(num_images):
        label = "zebra" if index == 0 else "ant"
        xml = voc_xml(f"other-{index}.jpg", [(label, 3, 4, 13 + index, 24)])
        (root / "Annotations" / f"a{index}.xml").write_text(xml)
        Image.new("RGB", (40, 30), (40 * index, 50, 60)).save(root / "JPEGImages" / f"a{index}.jpg", quality=95)
    for split, names in (lists or {}).items():
        file = root / "ImageSets" / "Main" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(names) + "\n")
    return root


def all_bytes(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


Edit = Callable[[CocoDict], Any]


@pytest.fixture
def coco_layout(tmp_path: Path) -> Path:
    return make_coco_layout(tmp_path / "coco")

"""Small sound sources of every format as they lie in a folder, for `tests.faults.fuzz` to spoil."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from core.annotations.coco import inspect_coco
from core.annotations.content import SplitContent
from core.annotations.prepared import open_dataset, write_dataset
from core.annotations.subsets import subsample
from core.config.schema import Config
from tests.annotations.conftest import all_bytes, coco_dict, make_coco_layout, make_voc, write_images, write_json
from tests.annotations.test_cityscapes import THINGS, make_tree
from tests.annotations.yolo_sets import put, ultralytics

Tree = Mapping[str, bytes]
"""Contents of files by name below a folder."""


def tree_of(make: Callable[[Path], Any]) -> Tree:
    """Return what a maker of files puts into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return all_bytes(Path(folder))


@cache
def coco_layout() -> Tree:
    """COCO 2017 with two splits."""
    return tree_of(lambda root: make_coco_layout(root, 3, 2))


@cache
def coco_file() -> Tree:
    """One file, and its images beside it."""

    def make(root: Path) -> None:
        write_json(root / "set.json", coco_dict(3))
        write_images(root / "images", coco_dict(3))

    return tree_of(make)


@cache
def cityscapes_in_coco_form() -> Tree:
    """As the reference has it."""

    def make(root: Path) -> None:
        write_json(root / "CocoFormatAnnos" / "cityscapes_train_cocostyle.json", coco_dict(2))
        write_images(root / "leftImg8bit" / "train", coco_dict(2))

    return tree_of(make)


@cache
def voc() -> Tree:
    """With lists."""
    return tree_of(lambda root: make_voc(root, {"train": ["a0", "a1 1"], "val": ["a2"]}, num_images=4))


@cache
def yolo_yaml() -> Tree:
    """Ultralytics."""
    text = "path: .\ntrain: images/train\nval: [images/val]\ntest:\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
    lines = "0 0.5 0.5 0.25 0.2\n1 0.1 0.1 0.2 0.1 0.3 0.4\n"
    return tree_of(lambda root: ultralytics(root, lines, text))


@cache
def yolo_poses() -> Tree:
    """With key points."""
    text = "train: images/train\nval: images/val\nkpt_shape: [1, 3]\nnames: [cat]\n"
    points = "0 0.5 0.5 0.25 0.2 0.1 0.1 2\n"
    files = {"images/train/a.png": "", "labels/train/a.txt": points, "images/val/v.png": "", "labels/val/v.txt": points}
    return tree_of(lambda root: put(root, {**files, "data.yaml": text}))


@cache
def yolo_lists() -> Tree:
    """Darknet."""
    files = {
        "obj.data": "classes = 2\ntrain = train.txt\nvalid = valid.txt\nnames = obj.names\n",
        "obj.names": "cat\ndog\n",
        "train.txt": "obj/a.png\n/content/set/obj/b.png\n",
        "valid.txt": "obj\\v.png\n",
    }
    labels = {f"obj/{stem}.txt": "0 0.5 0.5 0.25 0.2\n1 0.2 0.2 0.1 0.1\n" for stem in "abv"}
    return tree_of(lambda root: put(root, {**files, **labels, **{f"obj/{stem}.png": "" for stem in "abv"}}))


def _csv(name: str, text: str, extra: Mapping[str, str]) -> Tree:
    return tree_of(lambda root: put(root, {name: text, "a.png": "", "b.png": "blue", **extra}))


@cache
def csv_header() -> Tree:
    """With the names of columns."""
    rows = "a.png,40,30,dog,3,4,13.5,24\na.png,40,30,cat,0,0,10,10\nb.png,40,30,,,,,\n"
    return _csv("train.csv", f"filename,width,height,class,xmin,ymin,xmax,ymax\n{rows}", {})


@cache
def csv_extents() -> Tree:
    """With left, top, width, height, and semicolons."""
    rows = "a.png;3;4;10.5;20;dog\nb.png;0;0;10;10;cat\n"
    return _csv("annotations.csv", f"image;x;y;w;h;label\n{rows}", {})


@cache
def csv_retinanet() -> Tree:
    """Without names of columns, and with ids of classes."""
    rows = 'a.png,3,4,13,24,dog\n"b.png",0,0,10,10,cat\nb.png,,,,,\n'
    return _csv("annotations.csv", rows, {"classes.csv": "cat,0\ndog,7\n"})


@cache
def cityscapes() -> Tree:
    """As it is downloaded: polygons, and for one picture an instance image too."""
    names = ("train/aachen/aachen_000000_000019", "val/lindau/lindau_000000_000003")

    def make(root: Path) -> None:
        make_tree(root, {name: THINGS[name] for name in names})
        (root / f"gtFine/{names[0]}_gtFine_instanceIds.png").unlink()

    return tree_of(make)


@cache
def per_split() -> Tree:
    """As Roboflow exports it, COCO in two splits and CSV in the third."""
    files: dict[str, bytes] = {}
    for split, first_id in (("train", 1), ("valid", 50)):
        content = coco_dict(2, first_id)
        content["categories"].append({"id": 0, "name": "none", "supercategory": "none"})
        files[f"{split}/_annotations.coco.json"] = json.dumps(content).encode()
        images = tree_of(partial(write_images, content=content))
        files |= {f"{split}/{name}": image for name, image in images.items()}
    table = {name: body.replace(b"cat", b"emu") for name, body in csv_header().items()}
    return files | {f"test/{name.replace('train.csv', '_annotations.csv')}": body for name, body in table.items()}


@cache
def prepared() -> Tree:
    """What `prepare-data` makes, with a subset of half the train split."""

    def make(root: Path) -> None:
        splits: dict[str, SplitContent] = {}
        for split, content in (("train", coco_dict(4)), ("val", coco_dict(2, 90))):
            write_images(root / "images" / split, content)
            file = write_json(root / "annotations" / f"{split}.json", content)
            splits[split] = SplitContent(inspect_coco(file)[0], root / "images" / split)
        write_dataset(root, "set", splits, sources=["somewhere"], recipe="demo")
        subsample(open_dataset(root), 0.5)

    return tree_of(make)


def zipped(tree: Tree, folder: str = "") -> bytes:
    """Return an archive of a tree."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in tree.items():
            archive.writestr(f"{folder}{name}", content)
    return stream.getvalue()


@cache
def images() -> Mapping[str, bytes]:
    """Return an image of every kind that is read."""
    size = (16, 12)
    rgb = Image.linear_gradient("L").resize(size).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = rgb.quantize(8)
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "rgba.png": (rgb.convert("RGBA"), {"exif": exif}),
        "palette.png": (palette, {"transparency": 0}),
        "one-bit.png": (rgb.convert("1"), {}),
        "sixteen.png": (rgb.convert("L").convert("I;16"), {}),
        "frames.png": (rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "baseline.jpg": (rgb, {"exif": exif}),
        "progressive.jpg": (rgb.convert("L"), {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "frames.gif": (palette, {"save_all": True, "append_images": [palette.rotate(180)]}),
        "plain.tif": (rgb, {}),
        "packed.tif": (rgb, {"compression": "tiff_lzw"}),
        "jpeg.tif": (rgb, {"compression": "jpeg"}),
        "deflated.tif": (rgb.convert("I;16"), {"compression": "tiff_adobe_deflate"}),
        "float.tif": (rgb.convert("F"), {}),
        "lossy.webp": (rgb, {"exif": exif}),
        "lossless.webp": (rgb.convert("RGBA"), {"lossless": True}),
        "frames.webp": (rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "rgb.bmp": (rgb, {}),
        "palette.bmp": (palette, {}),
    }
    found: dict[str, bytes] = {}
    for name, (image, options) in kinds.items():
        stream = io.BytesIO()
        image.save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.rpartition(".")[2].upper()), **options)
        found[name] = stream.getvalue()
    return found


@cache
def config_file() -> bytes:
    """Return a configuration with every key."""
    return yaml.safe_dump(Config().model_dump(), sort_keys=False).encode()

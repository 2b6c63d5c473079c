"""What a user sees of each fault: the real command, its message and its exit code.

    python -m benchmarks.fault_messages [F08 F31 ...]

F01 to F39: every row spoils a small data set in one way and runs a command on it. It stops where a command ends in a
traceback, or leaves files behind after an error. F40 to F69 are in `process_faults.py`. Prints Markdown.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from PIL import Image

from benchmarks.process_faults import print_table
from tests.annotations.conftest import all_bytes, make_coco_layout, write_json
from tests.cli.conftest import TINY
from tests.faults.desk import cut
from tests.faults.test_annotations import XYXY, delete
from tests.faults.test_images import exif, png

ENV = os.environ | {"OMP_NUM_THREADS": "1", "DEDETR_COCO_URL": "http://127.0.0.1:9"}


class Box:
    def __init__(self, folder):
        self.folder = folder
        make_coco_layout(folder / "coco")

    def file(self, split="train"):
        return self.folder / "coco/annotations" / f"instances_{split}2017.json"

    def image(self, name="001.png"):
        return self.folder / "coco/train2017" / name

    def edit(self, change, split="train"):
        content = json.loads(self.file(split).read_text())
        change(content)
        write_json(self.file(split), content)

    def put(self, *pv):
        *path, key, value = pv

        def change(c):
            for part in path:
                c = c[part]
            c[key] = value

        self.edit(change)


def case(fault, what, spoil, command="prepare-data coco", pick=None, extra=()):
    if len(sys.argv) > 1 and fault not in sys.argv[1:]:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        box = Box(folder)
        spoil(box)
        before = all_bytes(folder)
        words = command.split() + list(extra)
        done = subprocess.run(
            [sys.executable, "-m", "dedetr_cli", *words], cwd=folder, env=ENV, capture_output=True, text=True
        )
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        if errors:
            message = errors[0].removeprefix("error: ")
            hint = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
            assert all_bytes(folder) == before, done.stderr
            assert hint, done.stderr
        else:
            lines = (done.stderr + done.stdout).splitlines()
            message = next((line for line in lines if pick and pick in line), "(nothing picked) " + done.stderr[-200:])
        assert "Traceback" not in done.stderr, done.stderr
        message = message.replace(f"{folder}/", "").replace("|", "\\|")
        message = message if len(message) <= 260 else message[:257] + "..."
        shown = command if len(command) < 90 else command[:87] + "..."
        print(f"| {fault} | {what} | `{shown}` | {message} | {done.returncode} |", flush=True)


train = "train --data coco --preset demo --dry-run --device cpu --short-side 64 --batch-size 2"
print("| fault | what | command | message | exit code |\n|---|---|---|---|---|")
case("F01", "JSON cut off", lambda b: b.file().write_bytes(b.file().read_bytes()[:200]))
case("F02", "no key annotations", lambda b: b.edit(lambda c: c.pop("annotations")))
case(
    "F03",
    "a results list",
    lambda b: write_json(b.file(), [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]),
)
case("F04", "image id twice", lambda b: b.put("images", 3, "id", 2))
case("F05", "annotation id twice", lambda b: b.put("annotations", 4, "id", 101))
case("F06", "unknown image id", lambda b: b.edit(delete("images", 0)))
case("F06", "subset that keeps all annotations", lambda b: b.edit(delete("images", 0, 1, 2)), pick="does not list")
case("F07", "unknown category id", lambda b: [b.put("annotations", r, "category_id", 50) for r in range(1, 8)])
case("F08", "negative width", lambda b: b.put("annotations", 2, "bbox", [5, 4, -3, 6]))
case(
    "F08",
    "the same, dropped",
    lambda b: b.put("annotations", 2, "bbox", [5, 4, -3, 6]),
    "prepare-data coco --on-invalid drop",
    pick="left out",
)
case("F08", "zero height", lambda b: b.put("annotations", 2, "bbox", [5, 4, 3, 0]), pick="without width")
case("F08", "zero height", lambda b: b.put("annotations", 2, "bbox", [5, 4, 3, 0]), "prepare-data coco --strict")
case("F09", "NaN in a box", lambda b: b.put("annotations", 2, "bbox", [1, 2, float("nan"), 4]))
case("F10", "box wholly outside", lambda b: b.put("annotations", 2, "bbox", [40, 4, 5, 6]))
case("F10", "box partly outside", lambda b: b.put("annotations", 2, "bbox", [38, 4, 5, 6]), pick="edge")
case(
    "F11",
    "boxes as x1 y1 x2 y2",
    lambda b: [b.put("annotations", r, "bbox", box) for r, box in enumerate(XYXY + XYXY[:2])],
)
case("F11", "boxes as fractions", lambda b: [b.put("annotations", r, "bbox", [0.1, 0.2, 0.5, 0.25]) for r in range(8)])
case("F12", "image without objects", lambda b: None, pick="without objects, used")
case("F13", "no box at all", lambda b: b.put("annotations", []), train)
case(
    "F14",
    "a batch without boxes (one image a step)",
    lambda b: None,
    "train --data coco --out run",
    pick="train: images without",
    extra=["--preset", "demo", *TINY, "--batch-size", "1"],
)
case("F15", "a crowd", lambda b: b.put("annotations", 0, "iscrowd", 1), pick="crowds")
case("F16", "category id twice", lambda b: b.put("categories", 1, "id", 3))
case("F17", "class name twice", lambda b: b.put("categories", 1, "name", "cat"))
case(
    "F18",
    "class without instances",
    lambda b: [b.edit(lambda c: c["categories"].append({"id": 9, "name": "emu"}), s) for s in ("train", "val")],
    pick="train: classes without",
)
case("F19", "two images missing", lambda b: [b.image(n).unlink() for n in ("001.png", "003.png")])
case(
    "F19",
    "the same, dropped",
    lambda b: [b.image(n).unlink() for n in ("001.png", "003.png")],
    "prepare-data coco --on-invalid drop",
    pick="left out",
)
case("F20", "image cut off", lambda b: cut(b.image()))
case("F21", "zero bytes", lambda b: b.image().write_bytes(b""))
case("F22", "text named .png", lambda b: b.image().write_text("no image"))
case(
    "F23",
    "16-bit, CMYK, palette",
    lambda b: [
        Image.new(m, (40, 30)).save(b.image(n), format=f)
        for n, m, f in (("001.png", "I;16", "PNG"), ("002.png", "CMYK", "JPEG"), ("003.png", "P", "PNG"))
    ],
    pick="coco in data",
)
case("F23", "floating-point pixels", lambda b: Image.new("F", (40, 30)).save(b.image(), format="TIFF"))
case(
    "F24",
    "EXIF rotation, either way up",
    lambda b: [
        Image.new("RGB", s).save(b.image(n), exif=exif(6)) for n, s in (("001.png", (30, 40)), ("002.png", (40, 30)))
    ],
    pick="coco in data",
)
case("F25", "neither way up fits", lambda b: Image.new("RGB", (41, 30)).save(b.image(), exif=exif(6)))
case(
    "F26",
    "1 x 1",
    lambda b: (
        b.edit(lambda c: c["images"][4].update(width=1, height=1)),
        Image.new("RGB", (1, 1)).save(b.image("005.png")),
    ),
    pick="coco in data",
)
case("F26", "10^9 wide metadata", lambda b: b.put("images", 4, "width", 10**9))
case(
    "F27",
    "picture in train and val",
    lambda b: shutil.copyfile(b.image("002.png"), b.folder / "coco/val2017/501.png"),
    pick="two splits",
)
case(
    "F27",
    "the same, strict",
    lambda b: shutil.copyfile(b.image("002.png"), b.folder / "coco/val2017/501.png"),
    "prepare-data coco --strict",
)
case(
    "F28", "val has another class", lambda b: b.edit(lambda c: c["categories"].append({"id": 9, "name": "emu"}), "val")
)
case("F29", "5 images, batch 99", lambda b: None, train.replace("--batch-size 2", "--batch-size 99"), pick="steps")
case("F30", "1 query for 2 objects", lambda b: None, train + " --num-queries 1")
for n in ("../x.png", "/etc/x.png", "C:\\x.png", "x\0.png"):
    case("F31", f"file_name {n!r}", lambda b, n=n: b.put("images", 0, "file_name", n))
case("F31", "a link out", lambda b: (b.image().rename(b.folder / "o.png"), b.image().symlink_to(b.folder / "o.png")))


def evil(b):
    import torch

    from tests.faults.test_untrusted import Touch

    torch.save({"model": {"x": torch.zeros(1)}, "args": Touch(b.folder / "canary")}, b.folder / "evil.pth")


case("F32", "malicious pickle", evil, "eval --checkpoint evil.pth --data coco")


def upstream(b):
    import torch

    from tests.golden_files import Golden
    from tests.models.test_weights import synthetic_checkpoint

    torch.save(synthetic_checkpoint(Golden("dela-detr")), b.folder / "upstream.pth")


case(
    "F33",
    "reference .pth with a Namespace",
    upstream,
    "train --data coco --weights upstream.pth --dry-run --short-side 64 --batch-size 2 --device cpu",
    pick="model",
)
case(
    "F34",
    "YAML that runs code",
    lambda b: (b.folder / "evil.yaml").write_text("run: !!python/object/apply:os.mkdir [canary]\n"),
    "train --config evil.yaml --dry-run",
)
case("F35", "50000 x 50000 one-bit PNG", lambda b: b.image().write_bytes(png(50_000, 50_000, whole=True)))
case("F35", "a header that claims it", lambda b: b.image().write_bytes(png(50_000, 50_000, whole=False)))
for kind, start in (("FITS", b"SIMPLE  =       T"), ("EPS", b"%!PS-Adobe"), ("PSD", b"8BPS"), ("PDF", b"%PDF-1")):
    case("F36", f"{kind} as .png", lambda b, start=start: b.image().write_bytes(start + b" " * 3000))


def zips(names):
    def spoil(b):
        (b.folder / "cityscapes").mkdir()
        for a in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
            with zipfile.ZipFile(b.folder / "cityscapes" / a, "w", zipfile.ZIP_DEFLATED) as o:
                for n, c in names.items():
                    o.writestr(n, c)

    return spoil


case("F37", "zip with ../", zips({"../evil.txt": b"x"}), "prepare-data cityscapes")
case("F37", "absurd ratio", zips({"leftImg8bit/train/a/b_leftImg8bit.png": bytes(80 << 20)}), "prepare-data cityscapes")
case(
    "F38",
    "markup, ANSI, newline, = in a class name",
    lambda b: [
        b.edit(lambda c: c["categories"][0].update(name="=1+1 [red]x[/red] \x1b[31m\nnew"), s) for s in ("train", "val")
    ],
    pick="=1+1",
)
case("F38", "the same in a file name", lambda b: b.put("images", 0, "file_name", "=1+1 [red]x[/red] \x1b[31m\nnew.png"))
case("F39", "no network, --download", lambda b: None, "prepare-data fresh --format coco --download")
print()
print_table(sys.argv[1:])

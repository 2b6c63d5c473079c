"""F13 to F16, F29 and F30, with a model: what is odd about data, and no fault.

Empty boxes in each part of a step, and crowds in the AP, are in tests/datasets/, tests/losses/ and tests/evaluation/.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from tests.annotations.conftest import CocoDict, make_coco_layout, write_json
from tests.cli.conftest import TINY
from tests.faults.desk import Desk, typed


def make_odd(content: CocoDict) -> None:
    """Class ids 0 and a thousand million, and a crowd; the last image has no objects anyway."""
    ids = {3: 0, 7: 10**9}
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    content["annotations"][0]["iscrowd"] = 1


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with such a data set in `coco`, and in `run` what was learnt from it, an image a step."""
    folder = tmp_path_factory.mktemp("odd")
    make_coco_layout(folder / "coco")
    for split in ("train", "val"):
        path = folder / "coco" / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        make_odd(content)
        write_json(path, content)
    settings = ["--preset", "demo", *TINY, "--batch-size", "1", "--set", "run.log_every=1"]
    (folder / "said.txt").write_text(typed(folder, "train", "--data", "coco", "--out", "run", *settings))
    typed(folder, "predict", "coco/train2017", "--checkpoint", "run", "--threshold", "0", "--out", "vis")
    return folder


def test_f13_images_without_objects_are_trained_on(odd: Path) -> None:
    """F14 as well: the image without boxes is a batch of its own."""
    records = [json.loads(line) for line in (odd / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == 5
    assert all(math.isfinite(loss) for loss in losses)
    assert "train: images without objects, used as negatives: 1" in (odd / "said.txt").read_text()


def test_f15_crowds_are_no_fault(odd: Path) -> None:
    said = (odd / "said.txt").read_text()
    for split in ("train", "val"):
        assert f"{split}: crowds, which are not trained on and ignored in evaluation: 1" in said


def test_f16_class_ids_are_kept(odd: Path) -> None:
    from core.models.weights import read_weights

    found = json.loads((odd / "vis" / "predictions.json").read_text())
    names = {entry["category_id"]: entry["category_name"] for entry in found}
    assert names.items() <= {0: "cat", 10**9: "dog"}.items()
    assert names
    classes = read_weights(odd / "run" / "checkpoints" / "last" / "model.pt").classes
    assert classes is not None
    assert [(category.id, category.name) for category in classes] == [(0, "cat"), (10**9, "dog")]


def test_f29_fewer_images_than_a_batch(desk: Desk) -> None:
    words = ["--data", "coco", "--preset", "demo", *TINY, "--batch-size", "99", "--dry-run", "--json"]
    code, printed, err = desk.run("train", *words)
    assert code == 0, err
    plan = json.loads(printed)
    assert (plan["batch_size"], plan["steps_per_epoch"]) == (5, 1)


def test_f30_more_labels_than_queries(desk: Desk) -> None:
    words = ["--data", "coco", "--preset", "demo", *TINY, "--num-queries", "1", "--dry-run"]
    error = desk.refuse("train", *words, exit_code=2)
    assert "4 images have more labels" in error.message
    needed = re.search(r"--num-queries (\d+)", str(error.hint))
    assert needed
    desk.accept("train", *words, "--num-queries", needed[1])
    desk.accept("train", *words, "--set", "data.allow_more_labels_than_queries=true")

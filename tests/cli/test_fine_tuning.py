"""Training that starts from another detector's weights: `train --weights`, as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from core.annotations.records import Category
from core.api.starting_weights import weights_layer
from core.assembly import assemble
from core.config.layers import Layer, resolve
from core.config.schema import Config
from core.errors import CheckpointError
from core.models.specs import get_spec
from core.models.weights import read_weights
from core.trainer.checkpoint import find_model_file
from tests.cli.conftest import dedetr, succeed
from tests.golden_files import Golden
from tests.models.test_weights import synthetic_checkpoint

OLD_NAMES = ["circle", "cross", "ring", "square", "star", "triangle"]
NEW_NAMES = ["star", "moon", "circle"]
NUM_QUERIES = 30
"""Of the demo set's recipe."""

STANDING_STILL = [
    "--lr", "1e-12", "--lr-backbone", "0", "--set", "optimizer.weight_decay=0",
    "--epochs", "1", "--batch-size", "4", "--short-side", "64", "--set", "data.max_long_side=96", "--workers", "0",
    "--device", "cpu",
]  # fmt: skip
"""A training run that leaves the weights where they were, to 1e-9; nothing here says what the architecture is."""


@pytest.fixture(scope="module")
def sky(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of few images with other classes than the demo set's, two of them of equal name."""
    root = tmp_path_factory.mktemp("sky") / "sky"
    (root / "annotations").mkdir(parents=True)
    ids = {name: 10 * number for number, name in enumerate(NEW_NAMES, start=1)}
    for split, num_images in (("train", 6), ("val", 2)):
        document = json.loads((demo / "data" / "annotations" / f"{split}.json").read_text())
        images = document["images"][:num_images]
        (root / f"{split}2017").mkdir()
        for image in images:
            name = Path(image["file_name"]).name
            shutil.copy(next((demo / "data" / "images").rglob(name)), root / f"{split}2017" / name)
            image["file_name"] = name
        renamed = {each["id"]: ids.get(each["name"], ids["moon"]) for each in document["categories"]}
        kept = {image["id"] for image in images}
        annotations = [
            each | {"category_id": renamed[each["category_id"]]}
            for each in document["annotations"]
            if each["image_id"] in kept
        ]
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        (root / "annotations" / f"instances_{split}2017.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


def state_of(run: Path) -> dict[str, Tensor]:
    return dict(read_weights(find_model_file(run)).state)


def config_of(run: Path) -> Config:
    return Config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))


def initial_state(run: Path) -> dict[str, Tensor]:
    """Return the weights that the seed of a run gives, before any file is read."""
    classes = [Category(number, name) for number, name in enumerate(NEW_NAMES)]
    return assemble(config_of(run), classes, load_backbone_weights=False).model.state_dict()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        pytest.param(["--num-queries", "40"], ["30 of 40 queries", "10 queries"], id="F50-more-queries"),
        pytest.param(["--num-queries", "20"], ["first 20 of 30 queries"], id="F50-fewer-queries"),
    ],
)
def test_other_classes_and_queries(trained: Path, sky: Path, tmp_path: Path, flags: list[str], said: list[str]) -> None:
    run = tmp_path / "run"
    done = succeed(
        "train", "--weights", "runs/tiny", "--data", sky, "--out", run, *STANDING_STILL, *flags, "--json", cwd=trained
    )
    assert json.loads(done.stdout)["command"] == "train"
    assert "classes kept: star, circle; new: moon" in done.stderr
    for text in ("starting weights", "decoder.class_embed", "2 of 3 classes", *said):
        assert text in done.stderr, done.stderr

    given, fresh, tuned = state_of(trained / "runs" / "tiny"), initial_state(run), state_of(run)
    for key in (key for key in given if key.startswith("decoder.class_embed.")):
        expected = [given[key][OLD_NAMES.index("star")], fresh[key][1], given[key][0], given[key][-1]]
        assert torch.allclose(tuned[key], torch.stack(expected), rtol=0, atol=1e-9), key
    num_queries = int(flags[-1])
    queries = torch.cat([given["query_embed.weight"][:num_queries], fresh["query_embed.weight"][NUM_QUERIES:]])
    assert torch.allclose(tuned["query_embed.weight"], queries, rtol=0, atol=1e-9)
    backbone = "backbone.body.layer1.0.conv1.weight"
    assert torch.equal(tuned[backbone], given[backbone])
    assert not torch.equal(tuned[backbone], fresh[backbone])


def test_the_file_decides_on_the_architecture(trained: Path, sky: Path, tmp_path: Path) -> None:
    """The architecture comes with the weights; the recipe of the data set they were trained on does not."""
    succeed("train", "--weights", "runs/tiny", "--data", sky, "--out", tmp_path / "run", *STANDING_STILL, cwd=trained)
    old, new = config_of(trained / "runs" / "tiny"), config_of(tmp_path / "run")
    assert new.model == old.model
    assert new.backbone == old.backbone
    assert new.postprocess.nms_iou == Config().postprocess.nms_iou != old.postprocess.nms_iou


@pytest.mark.parametrize("model", [pytest.param("conddetr", id="F51-other-decoder")])
def test_another_architecture_is_refused(trained: Path, sky: Path, tmp_path: Path, model: str) -> None:
    arguments = ["train", "--weights", "runs/tiny", "--data", sky, "--out", tmp_path / "run", *STANDING_STILL]
    done = dedetr(*arguments, "--model", model, cwd=trained)
    assert done.returncode == 4, done.stderr
    for text in ("the weights do not fit the model", "missing: ", "unexpected: ", "of another shape: "):
        assert text in done.stderr
    assert not (tmp_path / "run").exists()


def test_resume_is_not_fine_tuning(trained: Path) -> None:
    done = dedetr("train", "--resume", "--weights", "runs/tiny", "--out", "runs/tiny", cwd=trained)
    assert done.returncode == 2, done.stderr
    assert "--weights" in done.stderr


def test_a_reference_checkpoint_needs_no_flags_of_its_architecture(trained: Path, sky: Path, tmp_path: Path) -> None:
    """Synthetic: the reference's keys and flags around recorded weights and a random ResNet-10."""
    torch.save(synthetic_checkpoint(Golden("dela-conddetr")), tmp_path / "reference.pth")
    done = succeed(
        "train", "--weights", tmp_path / "reference.pth", "--data", sky, "--out", tmp_path / "run", *STANDING_STILL,
        cwd=trained,
    )  # fmt: skip
    assert "classes kept: none; new: star, moon, circle" in done.stderr
    assert "0 of 3 classes" in done.stderr
    config = config_of(tmp_path / "run")
    assert config.model == Golden("dela-conddetr").model_config
    assert (config.backbone.norm, config.backbone.freeze_stem) == ("frozen_batch_norm", True)


def resolved(*layers: Layer) -> Config:
    return resolve(layers, lambda name: get_spec(name).config_defaults()).config


def test_the_layer_of_a_run(trained: Path) -> None:
    layer = weights_layer(trained / "runs" / "tiny")
    assert layer.origin == f"weights {trained / 'runs' / 'tiny'}"
    assert set(layer.values) == {"model", "backbone"}
    assert not {"attention", "roi_backend"} & set(layer.values["model"])
    config = config_of(trained / "runs" / "tiny")
    assert resolved(layer).model == config.model
    assert resolved(layer).backbone == config.backbone
    above = Layer({"model": {"num_queries": 9, "attention": "plain"}}, "flag")
    assert resolved(layer, above).model.num_queries == 9


@pytest.mark.parametrize("pretrained", ["IMAGENET1K_V1", None])
def test_the_layer_keeps_norm_and_stem_without_pretrained_weights(tmp_path: Path, pretrained: str | None) -> None:
    backbone: dict[str, Any] = {"name": "resnet18", "weights": pretrained, "norm": "frozen_batch_norm"}
    config = Config.model_validate({"backbone": backbone | {"freeze_stem": True}})
    content = {
        "format": "dedetr", "format_version": 1, "made_by": "0", "classes": [],
        "config": config.model_dump(), "model": {"x": torch.zeros(1)},
    }  # fmt: skip
    torch.save(content, tmp_path / "model.pt")
    recipe = Layer({"backbone": {"name": "resnet10", "weights": None}}, "preset demo")
    for layers in ([], [recipe]):
        made = resolved(*layers, weights_layer(tmp_path / "model.pt")).backbone
        assert (made.name, made.weights, made.norm, made.freeze_stem) == ("resnet18", None, "frozen_batch_norm", True)


def test_tensors_alone_leave_the_architecture_open(tmp_path: Path) -> None:
    torch.save({"query_embed.weight": torch.zeros(3, 4)}, tmp_path / "bare.pth")
    assert weights_layer(tmp_path / "bare.pth").values == {}
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        weights_layer(tmp_path / "absent.pth")

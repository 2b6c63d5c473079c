from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from core.annotations.records import Category
from core.config.schema import BackboneConfig
from core.errors import CheckpointError
from core.models.backbone import build_backbone
from core.models.detector import Detector, build_detector, num_backbone_levels
from core.models.reference_keys import (
    from_reference_state,
    reference_backbone_config,
    reference_model_config,
    reference_num_classes,
)
from core.models.specs import get_spec
from core.models.weights import FORMAT_VERSION, load_into, pack_weights, read_weights
from tests.golden_files import GOLDEN_NAMES, Golden
from tests.models.test_detector import random_batch, small_config, small_detector

CLASSES = (Category(3, "bird"), Category(7, "cat"), Category(9, "dog"))


def synthetic_checkpoint(golden: Golden) -> dict:
    """Return what the reference would save: its keys with all aliases, flags as a Namespace, and training state.

    Synthetic: transformer weights are recorded, those of the backbone (ResNet-10) and of the projections from its
    channels are random.
    """
    torch.manual_seed(11)
    state = golden.reference_state(aliases=True)
    for key, tensor in state.items():
        if key.startswith("input_proj.") and tensor.dim() == 4:
            level = int(key.split(".")[1]) if key.split(".")[1].isdigit() else 0
            num_channels = (512,) if len(golden.keys("in/feat")) == 1 else (128, 256, 512, 512)
            state[key] = 0.05 * torch.randn(tensor.shape[0], num_channels[level], *tensor.shape[2:])
    backbone = build_backbone(BackboneConfig(name="resnet10", weights=None), 3)
    state |= {f"backbone.0.{key}": tensor for key, tensor in backbone.state_dict().items()}
    return {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{}]},
        "lr_scheduler": {"last_epoch": 49, "_last_lr": [1e-4]},
        "epoch": 49,
        "args": argparse.Namespace(**golden.args | {"backbone": "resnet10"}),
    }


def build_for(path: Path) -> Detector:
    """Build what a reference checkpoint needs and load it, as a user of it would."""
    weights = read_weights(path)
    assert weights.is_reference
    assert weights.classes is None
    config = reference_model_config(weights.reference_args, weights.state)
    backbone_config = reference_backbone_config(weights.reference_args)
    num_classes = reference_num_classes(weights.state, get_spec(config.name).family)
    detector = build_detector(config, build_backbone(backbone_config, num_backbone_levels(config)), num_classes)
    report = load_into(detector, weights)
    assert report.fits
    assert len(report.loaded) == len(detector.state_dict())
    return detector.eval()


def output_of(detector: Detector) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return detector(random_batch((64, 64), (40, 50)))


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_reference_checkpoints_load_whole(tmp_path, name):
    golden = Golden(name)
    checkpoint = synthetic_checkpoint(golden)
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path)
    detector = build_for(path)
    assert detector.num_classes == 9
    assert detector.config == golden.model_config

    # The same, put together without any of the reading code.
    expected = build_detector(
        golden.model_config,
        build_backbone(
            BackboneConfig(name="resnet10", weights=None, norm="frozen_batch_norm"),
            num_backbone_levels(golden.model_config),
        ),
        9,
    ).eval()
    unaliased = {key: tensor for key, tensor in checkpoint["model"].items() if key not in golden.meta["alias"]}
    expected.load_state_dict(from_reference_state(unaliased))
    for ours, theirs in zip(output_of(detector), output_of(expected), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_tensors_alone_tell_the_architecture(name):
    golden = Golden(name)
    told = {"num_heads", "box_refinement", "roi_resolution", "name", "dropout"}
    config = reference_model_config({}, golden.reference_state(aliases=True))
    assert config.model_dump(exclude=told) == golden.model_config.model_dump(exclude=told)
    assert config.name.replace("de-", "") == golden.model_config.name.replace("dela-", "").replace("de-", "")


def test_a_checkpoint_from_files_of_tensors_alone(tmp_path):
    detector = small_detector("de-detr")
    save_file({key: tensor.contiguous() for key, tensor in detector.state_dict().items()}, tmp_path / "w.safetensors")
    other = small_detector("de-detr")
    torch.nn.init.normal_(other.query_embed.weight)
    weights = read_weights(tmp_path / "w.safetensors")
    assert not weights.is_reference
    load_into(other, weights)
    assert torch.equal(other.query_embed.weight, detector.query_embed.weight)


def test_our_own_file_round_trips(tmp_path):
    detector = small_detector("dela-conddetr").eval()
    torch.save(
        pack_weights(detector.state_dict(), {"model": {"name": "dela-conddetr"}}, CLASSES), tmp_path / "model.pt"
    )
    weights = read_weights(tmp_path / "model.pt")
    assert weights.classes == CLASSES
    assert weights.config == {"model": {"name": "dela-conddetr"}}
    assert not weights.is_reference
    torch.manual_seed(99)
    config = small_config("dela-conddetr")
    backbone = build_backbone(BackboneConfig(name="resnet10", weights=None, norm="batch_norm"), 3)
    copy = build_detector(config, backbone, 3).eval()
    assert load_into(copy, weights).fits
    for ours, theirs in zip(output_of(copy), output_of(detector), strict=True):
        assert torch.equal(ours, theirs)


def saved(detector: Detector, path: Path, classes: tuple[Category, ...] = CLASSES) -> Path:
    torch.save(pack_weights(detector.state_dict(), {}, classes), path)
    return path


def test_another_number_of_classes_is_refused_with_a_hint(tmp_path):
    weights = read_weights(saved(small_detector("de-detr"), tmp_path / "model.pt"))
    with pytest.raises(CheckpointError) as caught:
        load_into(small_detector("de-detr", num_classes=5), weights)
    assert "decoder.class_embed.0.weight (file [4, 32], model [6, 32])" in str(caught.value)
    assert "number of classes" in str(caught.value.hint)


@pytest.mark.parametrize("class_names", [None, ["dog", "horse"]], ids=["F51-as-it-is", "F51-fine-tuned"])
def test_what_does_not_fit_is_listed_by_kind(tmp_path, class_names):
    weights = read_weights(saved(small_detector("de-detr"), tmp_path / "model.pt"))
    with pytest.raises(CheckpointError) as caught:
        load_into(small_detector("conddetr", num_classes=2), weights, class_names)
    assert caught.value.exit_code == 4
    said = str(caught.value)
    assert "missing: " in said
    assert "unexpected: " in said
    assert "of another shape: " in said


def test_the_hint_is_about_what_differs(tmp_path):
    weights = read_weights(saved(small_detector("de-detr"), tmp_path / "model.pt"))
    with pytest.raises(CheckpointError) as caught:
        load_into(small_detector("de-detr", num_queries=8), weights)
    assert caught.value.hint == "set model.num_queries=7"
    # Queries and head of another width are no other number of queries or classes.
    for class_names in (None, ["bird", "cat", "dog"]):
        with pytest.raises(CheckpointError) as caught:
            load_into(small_detector("de-detr", hidden_dim=64), weights, class_names)
        assert "(file [32], model [64])" in str(caught.value)
        assert "model.*" in str(caught.value.hint)


def test_a_failed_load_changes_nothing(tmp_path):
    weights = read_weights(saved(small_detector("de-detr"), tmp_path / "model.pt"))
    detector = small_detector("de-detr", num_queries=8)
    before = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_into(detector, weights)
    assert all(torch.equal(before[key], tensor) for key, tensor in detector.state_dict().items())


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_runs_nothing(tmp_path, legacy):
    canary = tmp_path / "canary"
    content = {"model": {"x": torch.zeros(1)}, "args": Touch(canary)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as caught:
        read_weights(tmp_path / "evil.pth")
    assert caught.value.exit_code == 4
    assert "mkdir" in str(caught.value)
    assert "--trust-checkpoint" in str(caught.value.hint)
    assert not canary.exists()
    # Trusted on demand, it does what it does.
    assert list(read_weights(tmp_path / "evil.pth", trust=True).state) == ["x"]
    assert canary.exists()


def test_evil_flags_run_nothing(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"model": {"x": torch.zeros(1)}, "args": argparse.Namespace(lr=Touch(canary))}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "evil.pth")
    assert not canary.exists()


def test_damaged_files_are_checkpoint_errors(tmp_path):
    whole = saved(small_detector("de-detr"), tmp_path / "model.pt").read_bytes()
    for length in (0, 1, 100, 10_000, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            read_weights(tmp_path / "cut.pt")
        assert caught.value.where == str(tmp_path / "cut.pt")
    (tmp_path / "cut.safetensors").write_bytes(whole[:1000])
    (tmp_path / "text.pth").write_text("<html>404</html>")
    (tmp_path / "folder.pth").mkdir()
    for name in ("cut.safetensors", "text.pth", "folder.pth", "absent.pth"):
        with pytest.raises(CheckpointError):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("content", [[1], {}, {"model": {}}, {"model": {"x": 1}}, {"format": "dedetr"}, None])
def test_files_without_weights_are_checkpoint_errors(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "x.pt")


def test_a_newer_format_is_named(tmp_path):
    content = pack_weights({"x": torch.zeros(1)}, {}, CLASSES) | {"format_version": FORMAT_VERSION + 1}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=rf"format {FORMAT_VERSION + 1}; this is dedetr .*, which reads format {FORMAT_VERSION}"
    ):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"masks": True}, "mask heads"),
        ({"frozen_weights": "x.pth"}, "frozen_weights"),
        ({"ms_roi": False}, "single-scale"),
        ({"nheads": "eight"}, "num_heads"),
        ({"pool_res": -1}, "roi_resolution"),
    ],
)
def test_reference_models_that_are_not_ours_are_refused_by_name(flags, said):
    golden = Golden("de-detr")
    with pytest.raises(CheckpointError, match=said):
        reference_model_config(golden.args | flags, golden.reference_state(aliases=True))


def test_contradicting_copies_are_refused(tmp_path):
    golden = Golden("de-detr")
    state = golden.reference_state(aliases=True)
    state["bbox_embed.0.layers.0.bias"] = state["bbox_embed.0.layers.0.bias"] + 1
    with pytest.raises(CheckpointError, match="differs"):
        from_reference_state(state)


def test_no_detector_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"query_embed\.weight"):
        reference_model_config({}, {"transformer.x": torch.zeros(1)})

"""`model.attention`: with the fast and with the plain attention a detector is the same detector."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.config.schema import LabelAugmentationConfig, LossConfig
from core.errors import MachineError
from core.losses.criterion import Criterion
from core.models.detector import Detector, build_detector
from core.models.specs import SPECS
from core.ops.boxes import cxcywh_to_xyxy, norm_to_px
from core.structures import ImageBatch
from tests.golden_files import RecordedBackbone
from tests.losses.samples import random_targets
from tests.models.test_detector import SWITCHES, random_batch, small_config, small_detector
from tests.ops.test_roi_pool import StandInROIAlign

SPARSE = [name for name, spec in SPECS.items() if spec.is_sparse]
DENSE = [name for name in SPECS if name not in SPARSE]
SIZES_HW = ((64, 80), (50, 40), (33, 75))
"""Of one batch: each image is padded in another way, and no stride divides them all."""
both_families = pytest.mark.parametrize("name", ["de-detr", "de-conddetr"])


def padded_batch() -> ImageBatch:
    batch = random_batch(*SIZES_HW)
    return replace(batch, pixels=batch.pixels.double())


def on_recorded_features(name: str, **changes: Any) -> Detector:
    """Return a detector whose features do not come from pixels, and whose boxes differ from layer to layer."""
    strides = (32,) if changes.get("num_feature_levels") == 1 else (8, 16, 32)
    generator = torch.Generator().manual_seed(2)
    sizes = [(-(-64 // stride), -(-80 // stride)) for stride in strides]
    features = [torch.randn(len(SIZES_HW), 6, *size, generator=generator) for size in sizes]
    torch.manual_seed(0)
    detector = build_detector(small_config(name, **{"dropout": 0.0, **changes}), RecordedBackbone(features, strides), 3)
    for head in detector.decoder.bbox_embed:
        nn.init.normal_(head.last.weight, generator=generator)
    return detector


def pair(build: Callable[..., Detector], name: str, **changes: Any) -> tuple[Detector, Detector]:
    """Return the fast and the plain detector, in float64 and with the same weights."""
    fast, plain = (build(name, attention=attention, **changes).double() for attention in ("fast", "plain"))
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def answer(detector: Detector) -> dict[str, Tensor]:
    """Return logits, boxes, the training loss, and its gradient in every parameter."""
    torch.manual_seed(3)
    output = detector(padded_batch())
    criterion = Criterion(LossConfig(), LabelAugmentationConfig(), detector.spec.family, 3)
    loss = criterion(output, random_targets([3, 0, 2], seed=0)).total
    names, parameters = zip(*detector.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    found = {"logits": output.logits, "boxes": output.boxes_cxcywh_norm, "loss": loss}
    return found | dict(zip(names, gradients, strict=True))


def require_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def require_same_detector(fast: Detector, plain: Detector) -> dict[str, Tensor]:
    found = answer(fast)
    require_equal(found, answer(plain))
    return found


@pytest.mark.parametrize("name", SPARSE)
def test_whole_detectors_answer_and_learn_the_same(name):
    require_same_detector(*pair(small_detector, name, dropout=0.0))


@pytest.mark.parametrize("switch", SWITCHES)
@both_families
def test_so_they_do_with_every_switch(name, switch):
    found = require_same_detector(*pair(on_recorded_features, name, **SWITCHES[switch]))
    assert (found["boxes"][0] - found["boxes"][1]).abs().max() > 0.1
    if switch.startswith("learned"):
        for axis in ("row", "col"):
            assert found[f"position_embedding.{axis}_embed.weight"].abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["fast", "plain"])
@both_families
def test_learned_positions_learn_from_the_crops(name, attention):
    """Not from the encoded map alone, which has two rows of cells."""
    detector = on_recorded_features(name, attention=attention, position_embedding="learned").double()
    gradient = answer(detector)["position_embedding.row_embed.weight"]
    assert gradient[2:4].abs().amax(-1).min() > 1e-6
    assert gradient[8:].count_nonzero() == 0


@both_families
def test_the_same_seed_drops_the_same_weights(name):
    found = require_same_detector(*pair(on_recorded_features, name, dropout=0.3))
    assert not torch.equal(found["logits"], answer(on_recorded_features(name).double())["logits"])


@pytest.mark.parametrize("attention", ["fast", "plain"])
@both_families
def test_decoders_take_no_images_and_no_queries(name, attention):
    detector = on_recorded_features(name, attention=attention).double().eval()
    images = detector.encode(padded_batch())
    pyramid = replace(
        images.pyramid,
        features=[level[:0] for level in images.pyramid.features],
        positions=[level[:0] for level in images.pyramid.positions],
    )
    no_images = replace(
        images,
        memory=images.memory[:0],
        positions=images.positions[:0],
        padding_mask=images.padding_mask[:0],
        pyramid=pyramid,
        sizes_hw=images.sizes_hw[:0],
    )
    queries = detector.query_embed.weight
    assert detector.decoder(queries, no_images).boxes_cxcywh_norm.shape == (3, 0, 7, 4)
    assert detector.decoder(queries[:0], images).boxes_cxcywh_norm.shape == (3, 3, 0, 4)


@pytest.mark.parametrize("name", DENSE)
def test_dense_models_have_nothing_to_choose(name):
    fast, plain = (
        answer(small_detector(name, attention=attention, dropout=0.0).double()) for attention in ("fast", "plain")
    )
    assert all(torch.equal(tensor, plain[key]) for key, tensor in fast.items())


def require_equal_layers(name: str, attention: str, backend: str) -> None:
    """Compare a sparse layer of the decoder, compiled and not: its result, and the gradients of all it is made from."""
    detector = on_recorded_features(name, attention=attention).double()
    layer, images = detector.decoder.layers[1], detector.encode(padded_batch())
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return torch.randn(len(SIZES_HW), 7, detector.config.hidden_dim, generator=generator).double()

    boxes = norm_to_px(cxcywh_to_xyxy(random()[..., :4].sigmoid()), images.sizes_hw)
    states = [random() for _ in range(2 if name == "de-detr" else 3)]
    learned = [tensor for tensor in detector.parameters() if tensor.requires_grad]
    answers = []
    torch.compiler.reset()
    for run in (layer, torch.compile(layer, backend=backend)):
        state = run(*states, images, boxes)
        gradients = torch.autograd.grad(state.square().sum(), learned, retain_graph=True, allow_unused=True)
        answers.append([state, *gradients])
    torch.compiler.reset()
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-9, atol=1e-9)


@both_families
def test_a_captured_layer_gives_the_same(name):
    require_equal_layers(name, "fast", "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["fast", "plain"])
@both_families
def test_a_compiled_layer_gives_the_same(name, attention):
    require_equal_layers(name, attention, "inductor")


@both_families
def test_detectron2_crops_for_the_plain_attention(monkeypatch, name):
    layers = ModuleType("detectron2.layers")
    layers.ROIAlign = StandInROIAlign  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "detectron2", ModuleType("detectron2"))
    monkeypatch.setitem(sys.modules, "detectron2.layers", layers)
    ours, theirs = (
        answer(on_recorded_features(name, attention="plain", roi_backend=backend).double())
        for backend in ("torchvision", "detectron2")
    )
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    monkeypatch.setattr(StandInROIAlign, "__call__", lambda self, level, rois: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer(on_recorded_features(name, attention="plain", roi_backend="detectron2").double())


def test_detectron2_is_looked_for_when_the_detector_is_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(MachineError, match="detectron2") as caught:
        small_detector("de-detr", attention="plain", roi_backend="detectron2")
    assert caught.value.exit_code == 5

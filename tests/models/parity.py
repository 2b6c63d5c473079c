"""How far our models are from the reference's recorded runs, in units of the tolerance that golden/README states.

Shared by the tests of parity and of mutations, and by benchmarks/parity.py.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from core.losses.criterion import Criterion
from core.models import detector as detector_module
from core.models.reference_keys import from_reference_key
from core.ops import roi_pool
from core.ops.boxes import cxcywh_to_xyxy, norm_to_px
from tests.golden_files import Attention, Golden

FORWARD_TOLERANCE = 1e-4
LOSS_TOLERANCE, LOSS_FLOOR = 1e-4, 1e-6
GRADIENT_TOLERANCE, GRADIENT_FLOOR = 1e-3, 1e-4
RECORDED_SEED = 1234
NUM_RECORDED_QUERIES = 3


class Difference(NamedTuple):
    """One compared tensor; `ratio` is its largest difference divided by the tolerance."""

    kind: str
    key: str
    ratio: float


@cache
def recorded(name: str) -> Golden:
    return Golden(name)


def worst(differences: list[Difference], kind: str | None = None) -> float:
    """Return the largest ratio, of one kind or of all; NaN counts as infinite."""
    ratios = [each.ratio for each in differences if kind in (None, each.kind)]
    return max(math.inf if math.isnan(ratio) else ratio for ratio in ratios)


def forward_differences(golden: Golden, attention: Attention = "plain") -> list[Difference]:
    """Compare masks, memory, RoI tokens, normed decoder states, logits and boxes."""
    detector, batch = golden.detector(attention), golden.batch()
    states: list[Tensor] = []
    detector.decoder.norm.register_forward_hook(lambda module, inputs, normed: states.append(normed))
    with torch.no_grad():
        images = detector.encode(batch)
        output = detector(batch)
    answer = golden.output()
    num_layers = len(answer.logits)
    expected_states = golden.tensor("out/hs")
    differences = [
        _compare("logits", "out/pred_logits", output.logits[-num_layers:], answer.logits),
        _compare("boxes", "out/pred_boxes", output.boxes_cxcywh_norm[-num_layers:], answer.boxes_cxcywh_norm),
        _compare("memory", "out/memory", images.memory.transpose(0, 1), golden.tensor("out/memory")),
        _compare("states", "out/hs", torch.stack(states)[..., : expected_states.shape[-1]], expected_states),
    ]
    for key in golden.keys("in/mask"):
        expected = golden.tensor(key)
        mask = detector_module.resize_mask(batch.padding_mask, expected.shape[-2:])
        differences.append(Difference("masks", key, 0.0 if torch.equal(mask, expected) else math.inf))
    for layer in (0, 1):
        if f"out/roi_tokens{layer}" not in golden:
            continue
        # Without auxiliary outputs only the last layer's boxes are recorded.
        boxes_norm = (answer if num_layers > 1 else output).boxes_cxcywh_norm[layer]
        boxes = norm_to_px(cxcywh_to_xyxy(boxes_norm), batch.sizes_hw)
        resolution = golden.model_config.roi_resolution
        for name, pooled in zip(
            ("roi_tokens", "roi_pos"), roi_pool.pool_roi_tokens(images.pyramid, boxes, resolution), strict=True
        ):
            expected = golden.tensor(f"out/{name}{layer}")
            ours = pooled.permute(2, 1, 0, 3)[:, :NUM_RECORDED_QUERIES, :, : expected.shape[-1]]
            differences.append(_compare("tokens", f"out/{name}{layer}", ours, expected))
    return differences


def gradient_differences(golden: Golden, attention: Attention = "plain") -> list[Difference]:
    """Compare the loss of target set A in training, and its gradient in every parameter."""
    detector = golden.detector(attention)
    augmentation, family = golden.label_augmentation_config, golden.spec.family
    criterion = Criterion(golden.loss_config, augmentation, family, golden.num_classes).train()
    generator = torch.Generator().manual_seed(RECORDED_SEED)
    losses = criterion(detector(golden.batch()), golden.targets("A"), generator)
    losses.total.backward()
    differences = []
    for key in golden.keys("loss/A/train/"):
        expected = float(golden.array(key))
        ours = losses.total if key.endswith("/total") else losses.terms[key.rsplit("/", 1)[-1]]
        ratio = abs(ours.item() - expected) / max(LOSS_TOLERANCE * abs(expected), LOSS_FLOOR)
        differences.append(Difference("losses", key, ratio))

    parameters = dict(detector.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    without = {from_reference_key(str(name)) for name in golden.array("no_grad_names")}
    same_names = parameters.keys() - gradients.keys() == without
    differences.append(Difference("gradients", "no_grad_names", 0.0 if same_names else math.inf))
    for key in (*golden.keys("grad/"), *golden.keys("grad_head/")):
        kind, name = key.split("/", 1)
        gradient = gradients[from_reference_key(name)]
        if kind == "grad_head":
            gradient = gradient.reshape(len(gradient), -1)[:4, :32]
        differences.append(_compare("gradients", key, gradient, golden.tensor(key), GRADIENT_TOLERANCE, GRADIENT_FLOOR))
    for name, norm in zip(golden.array("gradnorm_names"), golden.tensor("gradnorm"), strict=True):
        ours = gradients[from_reference_key(str(name))].norm()
        differences.append(
            _compare("gradients", f"gradnorm {name}", ours, norm.to(ours), GRADIENT_TOLERANCE, GRADIENT_FLOOR)
        )
    return differences


def _compare(
    kind: str, key: str, ours: Tensor, expected: Tensor, relative: float = FORWARD_TOLERANCE, floor: float = 0.0
) -> Difference:
    assert ours.shape == expected.shape, (key, ours.shape, expected.shape)
    tolerance = max(relative * expected.abs().max().item(), floor)
    return Difference(kind, key, (ours.detach() - expected).abs().max().item() / tolerance)

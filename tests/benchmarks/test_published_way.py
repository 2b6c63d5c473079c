"""The published way of computing gives our numbers, and is what it says it is."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.annotations.records import Category
from core.assembly import Assembly, assemble
from core.config.schema import Config
from core.models.specs import get_spec
from core.structures import ImageBatch, Target
from published_way import published_way

NUM_LAYERS = 3
CLASSES = [Category(label, f"class {label}") for label in range(3)]
SWITCHES = {
    "detr": {},
    "conddetr": {},
    "de-detr": {},
    "dela-detr": {"num_feature_levels": 4, "position_embedding": "learned"},
    "de-conddetr": {"num_feature_levels": 1},
    "dela-conddetr": {"box_refinement": False},
}


def build(name: str, dropout: float = 0.0, **switches) -> Assembly:
    """Return a small model of random weights, of the norms' statistics too, in training mode."""
    settings = get_spec(name).config_defaults()
    settings["model"] |= {
        "hidden_dim": 32, "num_heads": 4, "num_encoder_layers": 2, "num_decoder_layers": NUM_LAYERS,
        "feedforward_dim": 48, "num_queries": 30, "dropout": dropout, **switches,
    }  # fmt: skip
    settings["backbone"] = {"name": "resnet10", "weights": None, "norm": "frozen_batch_norm", "freeze_stem": True}
    settings["data"] = {"short_side": 96, "max_long_side": 128}
    assembly = assemble(Config.model_validate(settings), CLASSES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in assembly.model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(tensor + 0.05 * (noise.abs() if name.endswith("running_var") else noise))
    assembly.model.train()
    assembly.criterion.train()
    return assembly


def make_images(dtype: torch.dtype) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    pixels, mask = torch.randn(2, 3, 96, 128, generator=generator, dtype=dtype), torch.zeros(2, 96, 128)
    pixels[1, :, 64:], mask[1, 64:] = 0, 1
    return ImageBatch(pixels, mask.bool(), torch.tensor([[96, 128], [64, 128]]))


def make_targets(dtype: torch.dtype) -> list[Target]:
    generator = torch.Generator().manual_seed(2)
    boxes = torch.rand(2, 4, 4, generator=generator, dtype=dtype) * 0.4 + 0.1
    return [Target(boxes[0], torch.tensor([0, 1, 2, 1])), Target(boxes[1, :2], torch.tensor([2, 2]))]


def run(assembly: Assembly, dtype: torch.dtype = torch.float64) -> tuple[dict[str, torch.Tensor], ...]:
    """Return outputs, losses and gradients by name."""
    model = assembly.model.to(dtype)
    output = model(make_images(dtype))
    losses = assembly.criterion(output, make_targets(dtype), torch.Generator().manual_seed(3))
    losses.total.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return output._asdict(), {"total": losses.total, **losses.terms}, gradients


@pytest.mark.parametrize("name", SWITCHES)
def test_equal_numbers(name):
    ours = build(name, **SWITCHES[name])
    for kind, published, expected in zip(
        ("outputs", "losses", "gradients"), run(published_way(ours)), run(ours), strict=True
    ):
        assert published.keys() == expected.keys(), kind
        for key, tensor in expected.items():
            difference = (published[key] - tensor).abs().max().item()
            assert difference <= 1e-9 * max(1.0, tensor.abs().max().item()), f"{kind} {key}"


class CalledOperations(TorchDispatchMode):
    """Counts what PyTorch is asked to do, and keeps what maps RoIAlign and convolutions see."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.roi_channels: set[int] = set()
        self.is_channels_last = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        self.counts[name] += 1
        if name == "roi_align":
            self.roi_channels.add(args[0].shape[1])
        if name == "convolution":
            self.is_channels_last |= not args[0].is_contiguous()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["de-detr", "de-conddetr"])
def test_it_works_as_published(name):
    called = CalledOperations()
    published = published_way(build(name, dropout=0.1))
    with called:
        output = published.model(make_images(torch.float32))
        published.criterion(output, make_targets(torch.float32))
    assert called.counts["roi_align"] == 3 * NUM_LAYERS
    assert called.roi_channels == {2 * 32}
    assert not called.is_channels_last
    ours = {"embedding_bag", "_embedding_bag", "random_", "batch_norm", "native_batch_norm"}
    fused = {operation for operation in called.counts if "scaled_dot_product" in operation} | ours
    assert not fused & called.counts.keys()
    # A transfer and a matching for each layer.
    assert called.counts["_cdist_forward"] == NUM_LAYERS
    # Weights of two encoder layers and of both attentions of each decoder layer.
    assert called.counts["_softmax"] >= 2 + 2 * NUM_LAYERS

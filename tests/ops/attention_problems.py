"""Random arguments for a `SparseAttention`, and what an implementation answers to them.

Nothing here knows how an implementation works: the tests that use it hold for any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.ops.absorbed_attention import AbsorbedSparseAttention
from core.ops.roi_pool import FeaturePyramid
from core.ops.sparse_attention import Affine, KeyValueProjection, PlainSparseAttention, SparseAttention

IMPLEMENTATIONS: dict[str, Callable[[int], SparseAttention]] = {
    "fast": AbsorbedSparseAttention,
    "plain": PlainSparseAttention,
}
"""What `model.attention` may say, and what that makes of a RoI resolution."""

STRIDES = {1: (32,), 3: (8, 16, 32), 4: (8, 16, 32, 64)}
IMAGE_HW = (67, 90)
"""Divisible by no stride: the last row and column of every map lie partly outside the image."""

SCALE = 0.4


@dataclass(frozen=True)
class Problem:
    """Arguments of a `SparseAttention`; those of DETR's family have neither `position` nor a `position_key`."""

    content: Tensor
    position: Tensor | None
    features: list[Tensor]
    positions: list[Tensor]
    strides: tuple[int, ...]
    boxes: Tensor
    projection: KeyValueProjection

    @property
    def pyramid(self) -> FeaturePyramid:
        return FeaturePyramid(self.features, self.positions, self.strides)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """All tensors that gradients flow to, by name."""
        levels = {"features": self.features, "positions": self.positions}
        named = {"content": self.content}
        named |= {f"{kind} {index}": level for kind in levels for index, level in enumerate(levels[kind])}
        for name in ("content_key", "value", "position_key"):
            affine = getattr(self.projection, name)
            if affine is not None:
                named |= {f"{name}.weight": affine.weight, f"{name}.bias": affine.bias}
        return named if self.position is None else named | {"position": self.position}

    def attend(self, attention: SparseAttention, pyramid: FeaturePyramid | None = None, dropout: float = 0.0) -> Tensor:
        return attention(
            self.content,
            self.position,
            pyramid or self.pyramid,
            self.boxes,
            self.projection,
            scale=SCALE,
            dropout=dropout,
        )

    def answer(self, attention: SparseAttention, dropout: float = 0.0) -> dict[str, Tensor]:
        """Return what is attended, and the gradient of a weighted sum of it in every input that requires one."""
        torch.manual_seed(11)
        attended = self.attend(attention, dropout=dropout)
        share = torch.linspace(-1, 1, attended.numel(), dtype=attended.dtype).view_as(attended)
        learned = {name: each for name, each in self.inputs.items() if each.requires_grad}
        gradients = torch.autograd.grad((attended * share).sum(), list(learned.values()))
        return {"attended": attended.detach(), **dict(zip(learned, gradients, strict=True))}

    def with_inputs(self, inputs: dict[str, Tensor]) -> Problem:
        """Return the problem with other tensors in place of `inputs`."""

        def affine(name: str) -> Affine:
            return Affine(inputs[f"{name}.weight"], inputs[f"{name}.bias"])

        return replace(
            self,
            content=inputs["content"],
            position=inputs.get("position"),
            features=[inputs[f"features {index}"] for index in range(len(self.features))],
            positions=[inputs[f"positions {index}"] for index in range(len(self.positions))],
            projection=KeyValueProjection(
                affine("content_key"), affine("value"), None if self.position is None else affine("position_key")
            ),
        )

    def change(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """Return the problem with all `inputs` changed, as new leaves that require gradients where the old ones did."""
        changed = {name: change(each.detach()).requires_grad_(each.requires_grad) for name, each in self.inputs.items()}
        return self.with_inputs(changed)

    def to(self, dtype: torch.dtype) -> Problem:
        return self.change(lambda tensor: tensor.to(dtype))

    def select(self, images: Tensor | slice, queries: Tensor | slice) -> Problem:
        """Return the problem of some of the images and some of their queries."""
        return replace(
            self,
            content=self.content[images][:, queries],
            position=None if self.position is None else self.position[images][:, queries],
            features=[level[images] for level in self.features],
            positions=[level[images] for level in self.positions],
            boxes=self.boxes[images][:, queries],
        )


def random_problem(
    *,
    has_position_key: bool = False,
    strides: tuple[int, ...] = STRIDES[3],
    num_images: int = 2,
    num_queries: int = 20,
    num_heads: int = 2,
    dim: int = 8,
    image_hw: tuple[int, int] = IMAGE_HW,
    seed: int = 7,
) -> Problem:
    """Return a problem in float64 whose inputs all require gradients, with boxes of all kinds."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

    def levels() -> list[Tensor]:
        return [random(num_images, dim, *(-(-side // stride) for side in image_hw)) for stride in strides]

    def affine() -> Affine:
        return Affine(random(dim, dim, scale=dim**-0.5), random(dim))

    heads = (num_images, num_queries, num_heads, dim // num_heads)
    return Problem(
        content=random(*heads),
        position=random(*heads) if has_position_key else None,
        features=levels(),
        positions=levels(),
        strides=strides,
        boxes=boxes_of_all_kinds(num_images, num_queries, image_hw, generator),
        projection=KeyValueProjection(affine(), affine(), affine() if has_position_key else None),
    )


def boxes_of_all_kinds(
    num_images: int, num_queries: int, image_hw: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Return boxes (B, Q, 4) as xyxy_px, ten kinds in turns, in float64 but without a digit that float32 lacks."""
    shape = (num_images, num_queries, 2)
    height, width = image_hw

    def random(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    centre = random(0.2, 0.8) * torch.tensor([width, height])
    size = random(0.05, 0.3) * torch.tensor([width, height])
    anywhere = random(-1, 2) * torch.tensor([width, height])
    inside, across = _box(centre, size), _box(anywhere, size)
    kinds = [
        inside,
        across,
        _box(anywhere, 10 ** random(-2, 4)),
        _box(centre, torch.tensor([1e6, 1e5])),  # Huge.
        _box(centre, torch.zeros(2)),
        _box(centre, -size),
        (across / 4).round() * 4,  # Sampling points on centres of cells, and on the rims of maps.
        inside - 500,  # Far outside.
        inside.masked_fill(random(0, 1).repeat(1, 1, 2) < 0.4, float("nan")),
        across.masked_fill(random(0, 1).repeat(1, 1, 2) < 0.4, float("inf")) * torch.tensor([-1.0, 1.0, 1.0, -1.0]),
    ]
    kind = torch.arange(num_queries) % len(kinds)
    return torch.stack(kinds)[kind, :, torch.arange(num_queries)].transpose(0, 1).contiguous().float().double()


def _box(centre: Tensor, size: Tensor) -> Tensor:
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def require_equal(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-9) -> None:
    """Require two answers to be the same; a failure names the tensor."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )

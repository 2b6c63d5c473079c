from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from core.config.schema import DataConfig
from core.datasets.transforms import (
    EvalTransform,
    TransformedImage,
    clip_boxes,
    resized_hw,
)
from core.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from core.ops.boxes import cxcywh_to_xyxy
from tests.datasets.scenes import eval_transform, train_transform

# The config's range of 160 pixels keeps the pictures small: sizes scale by 1/5.
SMALL = DataConfig(short_side=160, max_long_side=267)
RECTANGLES = (((12, 8, 52, 40), (255, 0, 0)), ((70, 30, 118, 88), (0, 255, 0)), ((20, 60, 40, 90), (0, 0, 255)))


def _noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _picture() -> tuple[Tensor, Tensor, Tensor]:
    """A black 130 x 100 picture with a rectangle of each colour."""
    image = torch.zeros(3, 100, 130, dtype=torch.uint8)
    for (left, top, right, bottom), color in RECTANGLES:
        image[:, top:bottom, left:right] = torch.tensor(color, dtype=torch.uint8)[:, None, None]
    boxes = torch.tensor([box for box, _ in RECTANGLES], dtype=torch.float32)
    return image, boxes, torch.tensor([0, 1, 2])


def _pixels_0_1(transformed: TransformedImage) -> Tensor:
    return transformed.pixels / 255


def _equal(a: TransformedImage, b: TransformedImage) -> bool:
    are_equal = [torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True)]  # type: ignore[arg-type]
    return all(are_equal) and a.normalisation == b.normalisation


@pytest.mark.parametrize(
    ("hw", "expected"),
    [
        ((480, 640), (800, 1066)),  # int(800 * 640 / 480) = 1066.67 cut off
        ((640, 480), (1066, 800)),
        ((500, 500), (800, 800)),
        ((1024, 2048), (666, 1332)),  # round(1333 / 2) = round(666.5) = 666 (to even), int(666 * 2) = 1332
        ((300, 1000), (400, 1333)),  # round(399.9) = 400, int(400 * 1000 / 300) = 1333
        ((427, 640), (800, 1199)),
        ((10, 20000), (1, 2000)),  # round(0.67) = 1: the rule lets the long side pass its limit
        ((1, 20000), (1, 1333)),  # round(0.07) = 0: the reference fails here
        ((20000, 1), (1333, 1)),
        ((1, 1), (800, 800)),
    ],
)
def test_sizes_are_rounded_as_stated(hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_hw(*hw, 800, 1333) == expected


def _assert_one_grey_level(pil: np.ndarray, ours: np.ndarray) -> None:
    """Noise is the worst case: there about one value in 10^8 is two levels off, as PyTorch's weights have 16 bits."""
    difference = np.abs(pil.astype(float) - ours.astype(float))
    assert difference.max() <= 2.01
    assert (difference > 1.01).sum() <= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 120), st.integers(1, 120), st.integers(0, 1000))
def test_resize_equals_pil_to_one_grey_level(height: int, width: int, new_h: int, new_w: int, seed: int) -> None:
    image = _noise(height, width, seed)
    pil = functional.to_pil_image(image).resize((new_w, new_h), Image.Resampling.BILINEAR)
    ours = functional.resize(image, [new_h, new_w], antialias=True)
    _assert_one_grey_level(np.asarray(pil), ours.permute(1, 2, 0).numpy())


@settings(max_examples=15, deadline=None)
@given(st.integers(40, 500), st.integers(40, 500), st.integers(0, 1000))
def test_evaluation_equals_pil_resize(height: int, width: int, seed: int) -> None:
    image = _noise(height, width, seed)
    transformed = eval_transform(SMALL)(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    new_h, new_w = resized_hw(height, width, 160, 267)
    assert transformed.pixels.shape == (3, new_h, new_w)
    assert transformed.boxes_cxcywh_norm.shape == (0, 4)
    pil = functional.to_pil_image(image).resize((new_w, new_h), Image.Resampling.BILINEAR)
    _assert_one_grey_level(np.asarray(pil), transformed.pixels.permute(1, 2, 0).numpy())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(4, 120), st.integers(0, 1000))
def test_the_layout_in_memory_changes_no_pixel(height: int, width: int, side: int, seed: int) -> None:
    """Decoded images are channels-last, which is faster; the result is that of planes."""
    planes = _noise(height, width, seed)
    channels_last = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    transform = train_transform(DataConfig(short_side=side, max_long_side=2 * side))
    nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    a, b = (transform(image, *nothing, torch.Generator().manual_seed(seed)) for image in (planes, channels_last))
    assert _equal(a, b)


def test_mean_and_std_are_those_of_the_backbone() -> None:
    white = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    half = EvalTransform(SMALL, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert torch.equal(half.normalisation.apply(white), torch.ones(1, 3, 2, 2))
    for transform in (eval_transform(SMALL), train_transform(SMALL)):
        pixels = transform(*_picture(), torch.Generator().manual_seed(0)).normalisation.apply(white)[0, :, 0, 0]
        assert torch.allclose(pixels, (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD))


def _edges_of_color(pixels: Tensor, color: tuple[int, int, int]) -> list[float] | None:
    """Find a coloured rectangle in pixels of 0..1; None where it is not to be seen."""
    channel = color.index(255)
    others = [c for c in range(3) if c != channel]
    found = (pixels[channel] > 0.5) & (pixels[others[0]] < 0.5) & (pixels[others[1]] < 0.5)
    rows, columns = found.any(1).nonzero()[:, 0], found.any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    return [float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1]


def test_boxes_stay_on_their_rectangles_through_the_augmentation() -> None:
    transform = train_transform(SMALL)
    num_dropped, shapes = 0, set()
    for seed in range(60):
        transformed = transform(*_picture(), torch.Generator().manual_seed(seed))
        pixels = _pixels_0_1(transformed)
        height, width = pixels.shape[-2:]
        shapes.add((height, width))
        boxes = cxcywh_to_xyxy(transformed.boxes_cxcywh_norm) * torch.tensor([width, height, width, height])
        assert (transformed.boxes_cxcywh_norm >= 0).all()
        assert (transformed.boxes_cxcywh_norm <= 1).all()
        by_label = dict(zip(transformed.labels.tolist(), boxes.tolist(), strict=True))
        num_dropped += 3 - len(by_label)
        for label, (_, color) in enumerate(RECTANGLES):
            seen = _edges_of_color(pixels, color)
            if label in by_label and seen is not None:
                assert by_label[label] == pytest.approx(seen, abs=1.5), (seed, label)
            elif label in by_label:  # a sliver at the crop's edge, thinner than the blur
                left, top, right, bottom = by_label[label]
                assert min(right - left, bottom - top) < 2
            else:
                assert seen is None, (seed, label)
    assert num_dropped > 0
    assert len(shapes) > 10


def test_augmentation_draws_what_the_paper_says() -> None:
    """Short sides, crops and flips appear as often as stated; sizes scale with `short_side`."""
    transform = train_transform(SMALL)
    marker = torch.zeros(3, 100, 100, dtype=torch.uint8)
    marker[:, :, :10] = 255
    box, label = torch.tensor([[0.0, 0.0, 10.0, 100.0]]), torch.tensor([0])
    short_sides, num_flipped, num_cropped, num_rounds = set(), 0, 0, 300
    for seed in range(num_rounds):
        transformed = transform(marker, box, label, torch.Generator().manual_seed(seed))
        height, width = transformed.pixels.shape[-2:]
        short_sides.add(min(height, width))
        generator = torch.Generator().manual_seed(seed)
        is_flipped, is_cropped = (bool(torch.rand((), generator=generator) < 0.5) for _ in range(2))
        num_flipped, num_cropped = num_flipped + is_flipped, num_cropped + is_cropped
        if not is_cropped:
            assert height == width
            assert transformed.boxes_cxcywh_norm[0, 0].item() == pytest.approx(0.95 if is_flipped else 0.05)
    sides = {round(side / 5) for side in range(480, 801, 32)}
    assert sides <= short_sides
    assert min(short_sides) == min(sides)
    assert max(short_sides) == max(sides)
    assert 0.4 < num_flipped / num_rounds < 0.6
    assert 0.4 < num_cropped / num_rounds < 0.6


def test_crop_sides_lie_between_384_and_600() -> None:
    transform = train_transform(DataConfig())
    sides = set()
    for seed in range(40):
        image, _, _ = transform._resize_and_crop(
            _noise(50, 80), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.Generator().manual_seed(seed)
        )
        sides.update(image.shape[-2:])
    assert min(sides) >= 384
    assert max(sides) <= 600
    assert max(sides) - min(sides) > 150


@pytest.mark.parametrize("hw", [(1, 1), (10, 20000), (20000, 3), (1, 300)])
def test_extreme_images_go_through(hw: tuple[int, int]) -> None:
    image = _noise(*hw)
    box, label = torch.tensor([[0.0, 0.0, hw[1], hw[0]]]), torch.tensor([0])
    for seed in range(8):
        transformed = train_transform(SMALL)(image, box, label, torch.Generator().manual_seed(seed))
        assert transformed.pixels.numel() < 3 * 800 * 8 * 1333
        assert len(transformed.labels) == 1
    assert len(eval_transform(SMALL)(image, box, label).labels) == 1


def test_the_generator_alone_decides() -> None:
    first = train_transform(SMALL)(*_picture(), torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    second = train_transform(SMALL)(*_picture(), torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert _equal(first, second)
    third = train_transform(SMALL)(*_picture(), torch.Generator().manual_seed(6))
    assert first.pixels.shape != third.pixels.shape or not torch.equal(first.pixels, third.pixels)
    with pytest.raises(ValueError, match="generator"):
        train_transform(SMALL)(*_picture())


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    plain = train_transform(SMALL.model_copy(update={"augment": False}))(*_picture())
    evaluation = eval_transform(SMALL)(*_picture())
    assert _equal(plain, evaluation)


def test_clipping_keeps_boxes_with_an_area() -> None:
    boxes = torch.tensor([[-5.0, 2, 5, 8], [10, 0, 12, 5], [3, 3, 3, 9], [8, 8, 30, 40], [0, -4, 5, 0]])
    clipped, kept = clip_boxes(boxes, torch.tensor([20, 10]))
    assert kept.tolist() == [True, False, False, True, False]
    assert clipped.tolist() == [[0, 2, 5, 8], [8, 8, 10, 20]]


def test_inputs_are_left_as_they_are() -> None:
    image, boxes, labels = _picture()
    kept = image.clone(), boxes.clone(), labels.clone()
    for seed in range(5):
        train_transform(SMALL)(image, boxes, labels, torch.Generator().manual_seed(seed))
    eval_transform(SMALL)(image, boxes, labels)
    assert all(torch.equal(a, b) for a, b in zip((image, boxes, labels), kept, strict=True))

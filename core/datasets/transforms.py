"""From an image and its boxes to what the model sees: resize, flip, crop; and how it is normalised at the end.

The training pipeline is the paper's (that of DETR): flip, then either a resize or a resize-crop-resize. Its
sizes are stated for a short side of 800 pixels and scale along with `data.short_side`.

Pixels stay bytes until a batch is where the model is: a quarter of the memory to write, to pass from process to
process, and to send to a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from core.config.schema import DataConfig
from core.ops.boxes import xyxy_to_cxcywh

_PAPER_SHORT_SIDE = 800
_PAPER_SHORT_SIDES = range(480, 801, 32)
_PAPER_SIDES_BEFORE_CROP = (400, 500, 600)
_PAPER_CROP_SIDES = (384, 600)

# The paper does not limit the long side before the crop. An image of 20000 x 10 pixels would grow to more
# than a million columns, so there is a limit, far above what photographs reach.
_LONG_SIDES_BEFORE_CROP = 8


class Normalisation(NamedTuple):
    """Statistics of the images that a backbone was trained on.

    Attributes:
        mean: of each channel, for pixels in [0, 1].
        std: likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels: Tensor) -> Tensor:
        """Return (B, H, W, 3) uint8 pixels as (B, 3, H, W) float32, channels-last in memory, on the same device."""
        num_rows, height, width, num_channels = pixels.shape
        # Whole lines of the image at once: on CPUs three times faster than channels, of which there are only three.
        # Pixels are 0..255 here, so the factors of statistics for [0, 1] grow by 255.
        mean, std = ((torch.tensor(values) * 255).repeat(width).to(pixels.device, non_blocking=True) for values in self)
        lines = pixels.reshape(num_rows, height, width * num_channels).to(torch.float32).sub_(mean).div_(std)
        return lines.view(pixels.shape).permute(0, 3, 1, 2)


class TransformedImage(NamedTuple):
    """What a transform returns.

    Attributes:
        pixels: (3, h, w) uint8, RGB; may be the image that was given.
        boxes_cxcywh_norm: (N', 4) float32 in [0, 1]; N' < N where a crop emptied boxes.
        labels: (N',) int64.
        normalisation: what pixels still need before a model sees them.
    """

    pixels: Tensor
    boxes_cxcywh_norm: Tensor
    labels: Tensor
    normalisation: Normalisation


def resized_hw(height: int, width: int, short_side: int, max_long_side: int | None = None) -> tuple[int, int]:
    """Return height and width after a resize that keeps the aspect ratio, rounded as DETR rounds.

    Where the long side would pass `max_long_side`, the short side becomes round(max * short / long); the long
    side is then int(size * long / short), which can pass the limit by the rounding. No side is less than 1.
    """
    short, long = min(height, width), max(height, width)
    if max_long_side is not None and long / short * short_side > max_long_side:
        short_side = round(max_long_side * short / long)
        if short_side < 1:
            return (1, max_long_side) if height < width else (max_long_side, 1)
    if short_side == short:
        return height, width
    resized_long = int(short_side * long / short)
    return (resized_long, short_side) if width < height else (short_side, resized_long)


class _Resizer:
    """What training and evaluation share."""

    def __init__(self, config: DataConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        self.short_side = config.short_side
        self.max_long_side = config.max_long_side
        self.normalisation = Normalisation(tuple(mean), tuple(std))

    def _finish(self, image: Tensor, boxes_xyxy_px: Tensor, labels: Tensor) -> TransformedImage:
        height, width = image.shape[-2:]
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        return TransformedImage(image, xyxy_to_cxcywh(boxes_xyxy_px / scale), labels, self.normalisation)


class EvalTransform(_Resizer):
    """Resize to `short_side` with the long side limited. Draws no random numbers.

    Args:
        config: `short_side` and `max_long_side` are used.
        mean: of each channel, for pixels in [0, 1]; what the backbone was trained with.
        std: likewise.
    """

    def __init__(self, config: DataConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(config, mean, std)

    def __call__(
        self, image: Tensor, boxes_xyxy_px: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> TransformedImage:
        """Transform an image (3, H, W) uint8 with boxes (N, 4) and labels (N,); `generator` is not used."""
        image, boxes_xyxy_px = _resize(image, boxes_xyxy_px, self.short_side, self.max_long_side)
        return self._finish(image, boxes_xyxy_px, labels)


class TrainTransform(_Resizer):
    """The paper's augmentation; with `augment: false` exactly what `EvalTransform` does.

    Flip with p = 0.5; then with p = 0.5 a resize of the short side to one of 480, 512, ..., 800, otherwise a
    resize to 400, 500 or 600, a crop with sides drawn from [384, 600] and then that resize. Boxes are clipped
    to the crop; those it empties are dropped.

    Args:
        config: `short_side`, `max_long_side` and `augment` are used.
        mean: of each channel, for pixels in [0, 1]; what the backbone was trained with.
        std: likewise.
    """

    def __init__(self, config: DataConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(config, mean, std)
        self.augment = config.augment
        self._short_sides = [self._scaled(side) for side in _PAPER_SHORT_SIDES]
        self._sides_before_crop = [self._scaled(side) for side in _PAPER_SIDES_BEFORE_CROP]
        self._crop_sides = (self._scaled(_PAPER_CROP_SIDES[0]), self._scaled(_PAPER_CROP_SIDES[1]))

    def _scaled(self, side: int) -> int:
        return max(1, round(side * self.short_side / _PAPER_SHORT_SIDE))

    def __call__(
        self, image: Tensor, boxes_xyxy_px: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> TransformedImage:
        """Transform an image (3, H, W) uint8 with boxes (N, 4) and labels (N,).

        All random numbers come from `generator`, which must be given when `augment` is on.
        """
        if not self.augment:
            image, boxes_xyxy_px = _resize(image, boxes_xyxy_px, self.short_side, self.max_long_side)
            return self._finish(image, boxes_xyxy_px, labels)
        if generator is None:
            raise ValueError("augmentation needs a generator")
        if _coin(generator):
            image, boxes_xyxy_px = _flip(image, boxes_xyxy_px)
        if _coin(generator):
            image, boxes_xyxy_px, labels = self._resize_and_crop(image, boxes_xyxy_px, labels, generator)
        side = _choose(self._short_sides, generator)
        image, boxes_xyxy_px = _resize(image, boxes_xyxy_px, side, self.max_long_side)
        return self._finish(image, boxes_xyxy_px, labels)

    def _resize_and_crop(
        self, image: Tensor, boxes_xyxy_px: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        side = _choose(self._sides_before_crop, generator)
        image, boxes_xyxy_px = _resize(image, boxes_xyxy_px, side, _LONG_SIDES_BEFORE_CROP * self.max_long_side)
        low, high = self._crop_sides
        height, width = image.shape[-2:]
        crop_width = _draw(min(low, width), min(high, width), generator)
        crop_height = _draw(min(low, height), min(high, height), generator)
        top = _draw(0, height - crop_height, generator)
        left = _draw(0, width - crop_width, generator)
        image = functional.crop(image, top, left, crop_height, crop_width)
        boxes_xyxy_px = boxes_xyxy_px - torch.tensor([left, top, left, top], dtype=boxes_xyxy_px.dtype)
        boxes_xyxy_px, kept = clip_boxes(boxes_xyxy_px, torch.tensor([crop_height, crop_width]))
        return image, boxes_xyxy_px, labels[kept]


def clip_boxes(boxes_xyxy_px: Tensor, size_hw: Tensor) -> tuple[Tensor, Tensor]:
    """Clip boxes to their images and drop the empty ones.

    Args:
        boxes_xyxy_px: (N, 4).
        size_hw: (2,) height and width of the image in pixels, or (N, 2) of each box's own image.

    Returns:
        The (N', 4) boxes with an area, and an (N,) mask that is True for them.
    """
    limit = size_hw.flip(-1).to(boxes_xyxy_px).expand(len(boxes_xyxy_px), 2).repeat(1, 2)
    clipped = torch.minimum(boxes_xyxy_px.clamp(min=0), limit)
    kept = (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
    return clipped[kept], kept


def _resize(image: Tensor, boxes_xyxy_px: Tensor, short_side: int, max_long_side: int) -> tuple[Tensor, Tensor]:
    height, width = image.shape[-2:]
    new_height, new_width = resized_hw(height, width, short_side, max_long_side)
    if (new_height, new_width) == (height, width):
        return image, boxes_xyxy_px
    ratio_x, ratio_y = new_width / width, new_height / height
    scale = torch.tensor([ratio_x, ratio_y, ratio_x, ratio_y], dtype=boxes_xyxy_px.dtype)
    # Bilinear with antialiasing is what PIL does, and so what the reference trained with.
    return functional.resize(image, [new_height, new_width], antialias=True), boxes_xyxy_px * scale


def _flip(image: Tensor, boxes_xyxy_px: Tensor) -> tuple[Tensor, Tensor]:
    left, top, right, bottom = boxes_xyxy_px.unbind(-1)
    width = image.shape[-1]
    return functional.horizontal_flip(image), torch.stack([width - right, top, width - left, bottom], dim=-1)


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    """Return a whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _choose(choices: Sequence[int], generator: torch.Generator) -> int:
    return choices[_draw(0, len(choices) - 1, generator)]


def _coin(generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)

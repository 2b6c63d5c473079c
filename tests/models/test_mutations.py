"""Faults that are put in on purpose turn the parity checks red: the recorded runs notice each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from core.models import conditional_decoder, detector, position
from core.models.decoder import Decoder, Reference
from core.models.detector import Detector
from core.models.encoder import Encoder
from core.models.layers import ProjectedAttention
from core.ops import roi_pool, sparse_attention
from core.ops.boxes import inverse_sigmoid
from core.ops.sparse_attention import KeyValueProjection
from tests.models.parity import forward_differences, gradient_differences, recorded, worst

Mutation = Callable[[pytest.MonkeyPatch], None]

DENSE = ("detr", "conddetr")
SPARSE = ("de-detr", "de-conddetr")
DETR = ("detr", "de-detr")
CONDITIONAL = ("conddetr", "de-conddetr")
ALL = DENSE + SPARSE


def encoder_sees_padding(patch: pytest.MonkeyPatch) -> None:
    original = Encoder.forward
    patch.setattr(Encoder, "forward", lambda self, x, pos, mask: original(self, x, pos, torch.zeros_like(mask)))


def patch_encoded(patch: pytest.MonkeyPatch, change: Callable) -> None:
    original = Detector.encode
    patch.setattr(Detector, "encode", lambda self, batch: change(original(self, batch), batch))


def decoder_sees_padding(patch: pytest.MonkeyPatch) -> None:
    patch_encoded(patch, lambda images, _: replace(images, padding_mask=torch.zeros_like(images.padding_mask)))


def positions_count_padding(patch: pytest.MonkeyPatch) -> None:
    original = position.SinePositionEmbedding.forward
    patch.setattr(position.SinePositionEmbedding, "forward", lambda self, mask: original(self, torch.zeros_like(mask)))


def masks_by_area(patch: pytest.MonkeyPatch) -> None:
    def resize(mask: Tensor, size_hw: tuple[int, int]) -> Tensor:
        return F.interpolate(mask[None].float(), size=size_hw, mode="area")[0] > 0

    patch.setattr(detector, "resize_mask", resize)


def positions_x_before_y(patch: pytest.MonkeyPatch) -> None:
    original = position.SinePositionEmbedding.forward
    patch.setattr(
        position.SinePositionEmbedding,
        "forward",
        lambda self, mask: torch.cat(original(self, mask).chunk(2, dim=1)[::-1], dim=1),
    )


def patch_pool(patch: pytest.MonkeyPatch, change: Callable) -> None:
    original = roi_pool.pool_roi_tokens

    def pool(pyramid, boxes, *rest):
        pyramid, boxes = change(pyramid, boxes)
        return original(pyramid, boxes, *rest)

    patch.setattr(roi_pool, "pool_roi_tokens", pool)
    patch.setattr(sparse_attention, "pool_roi_tokens", pool)


def boxes_clipped_to_the_image(patch: pytest.MonkeyPatch) -> None:
    limit = torch.tensor([128.0, 96.0, 128.0, 96.0])
    patch_pool(patch, lambda pyramid, boxes: (pyramid, torch.minimum(boxes.clamp(min=0), limit)))


def strides_doubled(patch: pytest.MonkeyPatch) -> None:
    def double(pyramid, boxes):
        return replace(pyramid, strides=tuple(2 * stride for stride in pyramid.strides)), boxes

    patch_pool(patch, double)


def roi_not_aligned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(roi_pool, "roi_align", lambda *args, aligned: roi_align(*args, aligned=False))


def one_sample_a_bin(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(roi_pool, "SAMPLING_RATIO", 1)


def bins_column_by_column(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(roi_pool, "roi_align", lambda *args, aligned: roi_align(*args, aligned=aligned).transpose(2, 3))


def boxes_of_the_padded_image(patch: pytest.MonkeyPatch) -> None:
    def pad(images, batch):
        return replace(images, sizes_hw=torch.tensor(batch.padding_mask.shape[1:]).expand_as(images.sizes_hw))

    patch_encoded(patch, pad)


def memory_not_in_pyramid(patch: pytest.MonkeyPatch) -> None:
    original = Detector.encode

    def encode(self, batch):
        images = original(self, batch)
        raw = self.input_proj[-1](self.backbone(batch.pixels)[-1])
        return replace(images, pyramid=replace(images.pyramid, features=[*images.pyramid.features[:-1], raw]))

    patch.setattr(Detector, "encode", encode)


def patch_projection(patch: pytest.MonkeyPatch, change: Callable[[KeyValueProjection], KeyValueProjection]) -> None:
    original = sparse_attention.PlainSparseAttention.__call__

    def attend(self, content, pos, pyramid, boxes, projection, **rest):
        return original(self, content, pos, pyramid, boxes, change(projection), **rest)

    patch.setattr(sparse_attention.PlainSparseAttention, "__call__", attend)


def values_by_the_key_projection(patch: pytest.MonkeyPatch) -> None:
    patch_projection(patch, lambda projection: replace(projection, value=projection.content_key))


def sparse_keys_without_position(patch: pytest.MonkeyPatch) -> None:
    original = roi_pool.pool_roi_tokens

    def pool(*args):
        tokens, positions = original(*args)
        return tokens, torch.zeros_like(positions)

    patch.setattr(sparse_attention, "pool_roi_tokens", pool)


def scale_of_one_part_of_the_key(patch: pytest.MonkeyPatch) -> None:
    original = sparse_attention.PlainSparseAttention.__call__
    patch.setattr(
        sparse_attention.PlainSparseAttention,
        "__call__",
        lambda self, content, *rest, **options: original(
            self, content, *rest, **options | {"scale": content.shape[-1] ** -0.5}
        ),
    )


def next_layer_gets_the_normed_state(patch: pytest.MonkeyPatch) -> None:
    """Each layer is fed what the heads see."""
    for family in (conditional_decoder.ConditionalDecoder, detector.DetrDecoder):
        original = family.run_layer

        def run_layer(self, index, state, *rest, original=original):
            return original(self, index, self.norm.forward(state) if index > 0 else state, *rest)

        patch.setattr(family, "run_layer", run_layer)


def query_scale_in_the_first_layer_too(patch: pytest.MonkeyPatch) -> None:
    original = conditional_decoder.ConditionalDecoder.run_layer

    def run_layer(self, index, state, query_pos, reference, images, boxes):
        if index > 0:
            return original(self, index, state, query_pos, reference, images, boxes)
        sine = position.embed_points(reference.centre, self.hidden_dim) * self.query_scale(state)
        return self.layers[0](state, query_pos, sine, images, boxes)

    patch.setattr(conditional_decoder.ConditionalDecoder, "run_layer", run_layer)


def points_x_before_y(patch: pytest.MonkeyPatch) -> None:
    original = conditional_decoder.embed_points
    patch.setattr(conditional_decoder, "embed_points", lambda points, dim: original(points.flip(-1), dim))


def boxes_not_refined(patch: pytest.MonkeyPatch) -> None:
    """Every layer's boxes are relative to the image's centre."""
    original = Reference.refined.__func__
    patch.setattr(
        Reference,
        "refined",
        classmethod(lambda cls, boxes: original(cls, boxes)._replace(logits=torch.zeros_like(boxes))),
    )


def centre_stays_the_first(patch: pytest.MonkeyPatch) -> None:
    original = Reference.refined.__func__
    patch.setattr(
        Reference,
        "refined",
        classmethod(lambda cls, boxes: original(cls, boxes)._replace(centre=torch.full_like(boxes[..., :2], 0.5))),
    )


def coarse_inverse_sigmoid(patch: pytest.MonkeyPatch) -> None:
    for module in ("core.models.decoder", "core.models.conditional_decoder"):
        patch.setattr(f"{module}.inverse_sigmoid", lambda share: inverse_sigmoid(share, eps=0.1))


def cross_attention_scaled_by_half(patch: pytest.MonkeyPatch) -> None:
    original = ProjectedAttention.forward
    patch.setattr(
        ProjectedAttention,
        "forward",
        lambda self, query, key, value, mask=None: original(self, query * 2**0.5, key, value, mask),
    )


FORWARD: list[tuple[Mutation, tuple[str, ...]]] = [
    (encoder_sees_padding, ALL),
    (decoder_sees_padding, ALL),
    (positions_count_padding, ALL),
    (positions_x_before_y, ALL),
    (masks_by_area, ALL),
    (boxes_clipped_to_the_image, SPARSE),
    (strides_doubled, SPARSE),
    (roi_not_aligned, SPARSE),
    (one_sample_a_bin, SPARSE),
    (bins_column_by_column, SPARSE),
    (boxes_of_the_padded_image, SPARSE),
    (memory_not_in_pyramid, SPARSE),
    (values_by_the_key_projection, SPARSE),
    (sparse_keys_without_position, SPARSE),
    (scale_of_one_part_of_the_key, ("de-conddetr",)),
    (next_layer_gets_the_normed_state, ALL),
    (query_scale_in_the_first_layer_too, CONDITIONAL),
    (points_x_before_y, CONDITIONAL),
    (boxes_not_refined, SPARSE),
    (centre_stays_the_first, ("de-conddetr",)),
    (coarse_inverse_sigmoid, ("conddetr", *SPARSE)),
    (cross_attention_scaled_by_half, CONDITIONAL),
]


@pytest.mark.parametrize(("mutation", "name"), [(mutation, name) for mutation, names in FORWARD for name in names])
def test_forward_turns_red(monkeypatch, mutation, name):
    mutation(monkeypatch)
    assert worst(forward_differences(recorded(name))) > 10


def boxes_not_detached(patch: pytest.MonkeyPatch) -> None:
    """Both the reference of the next layer and its centre keep their history."""
    patch.setattr(Tensor, "detach", lambda self: self)


def reference_detached(patch: pytest.MonkeyPatch) -> None:
    """The initial reference gets no gradient."""
    original = Reference.first.__func__
    patch.setattr(Reference, "first", classmethod(lambda cls, logits: original(cls, logits.detach())))


def features_detached(patch: pytest.MonkeyPatch) -> None:
    """The pyramid is not trained through the RoI tokens."""

    def detach(pyramid, boxes):
        return replace(pyramid, features=[level.detach() for level in pyramid.features]), boxes

    patch_pool(patch, detach)


def loss_boxes_detached_in_early_layers(patch: pytest.MonkeyPatch) -> None:
    original = Decoder.forward

    def forward(self, *args):
        output = original(self, *args)
        boxes = output.boxes_cxcywh_norm
        return output._replace(boxes_cxcywh_norm=torch.cat([boxes[:-1].detach(), boxes[-1:]]))

    patch.setattr(Decoder, "forward", forward)


BACKWARD: list[tuple[Mutation, tuple[str, ...]]] = [
    (boxes_not_detached, SPARSE),
    (reference_detached, ("de-detr", *CONDITIONAL)),
    (features_detached, SPARSE),
    (loss_boxes_detached_in_early_layers, ALL),
]


@pytest.mark.parametrize(("mutation", "name"), [(mutation, name) for mutation, names in BACKWARD for name in names])
def test_gradients_turn_red_and_forward_stays_green(monkeypatch, mutation, name):
    mutation(monkeypatch)
    assert worst(forward_differences(recorded(name))) <= 1
    try:
        ratio = worst(gradient_differences(recorded(name)), "gradients")
    except KeyError:  # A parameter has no gradient at all.
        ratio = float("inf")
    assert ratio > 10

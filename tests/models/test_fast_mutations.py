"""Faults in the fast attention that are put in on purpose turn the parity checks red."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from core.ops import absorbed_attention
from core.ops.absorbed_attention import AbsorbedSparseAttention
from core.ops.roi_table import RoiBins, RoiTable
from tests.models.parity import forward_differences, gradient_differences, recorded, worst


def patch_bins(patch: pytest.MonkeyPatch, change_boxes: Callable, change_bins: Callable = lambda bins: bins) -> None:
    original = RoiTable.find_bins
    patch.setattr(
        RoiTable, "find_bins", lambda self, boxes, *rest: change_bins(original(self, change_boxes(boxes), *rest))
    )


def patch_build(patch: pytest.MonkeyPatch, change: Callable) -> None:
    original = RoiTable.build
    patch.setattr(RoiTable, "build", lambda *levels: change(original(*levels)))


def boxes_clipped_to_the_image(patch: pytest.MonkeyPatch) -> None:
    limit = torch.tensor([128.0, 96.0, 128.0, 96.0])
    patch_bins(patch, lambda boxes: torch.minimum(boxes.clamp(min=0), limit))


def rois_half_a_cell_off(patch: pytest.MonkeyPatch) -> None:
    patch_bins(patch, lambda boxes: boxes + 4)


def outside_points_left_out(patch: pytest.MonkeyPatch) -> None:
    """The mean is over the points inside alone."""

    def renormalize(bins: RoiBins) -> RoiBins:
        return RoiBins(bins.rows, bins.weights / bins.weights.sum(-1, keepdim=True).clamp(min=1e-6))

    patch_bins(patch, lambda boxes: boxes, renormalize)


def one_sample_a_bin(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(absorbed_attention, "SAMPLING_RATIO", 1)


def strides_doubled(patch: pytest.MonkeyPatch) -> None:
    patch_build(patch, lambda table: replace(table, strides=2 * table.strides))


def keys_without_position(patch: pytest.MonkeyPatch) -> None:
    patch_build(patch, lambda table: replace(table, positions=torch.zeros_like(table.positions)))


def values_by_the_key_projection(patch: pytest.MonkeyPatch) -> None:
    original = AbsorbedSparseAttention.__call__

    def attend(self, content, pos, pyramid, boxes, projection, **rest):
        return original(self, content, pos, pyramid, boxes, replace(projection, value=projection.content_key), **rest)

    patch.setattr(AbsorbedSparseAttention, "__call__", attend)


FORWARD = [
    boxes_clipped_to_the_image,
    rois_half_a_cell_off,
    outside_points_left_out,
    one_sample_a_bin,
    strides_doubled,
    keys_without_position,
    values_by_the_key_projection,
]


@pytest.mark.parametrize("name", ["de-detr", "de-conddetr"])
@pytest.mark.parametrize("mutation", FORWARD)
def test_forward_turns_red(monkeypatch, mutation, name):
    mutation(monkeypatch)
    assert worst(forward_differences(recorded(name), "fast")) > 10


@pytest.mark.parametrize("name", ["de-detr", "de-conddetr"])
def test_gradients_turn_red_without_those_of_the_features(monkeypatch, name):
    patch_build(monkeypatch, lambda table: replace(table, features=table.features.detach()))
    assert worst(forward_differences(recorded(name), "fast")) <= 1
    with pytest.raises(KeyError):  # The projections of the shallow levels have no gradient at all.
        gradient_differences(recorded(name), "fast")

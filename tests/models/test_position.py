from __future__ import annotations

import math

import pytest
import torch

from core.errors import UsageError
from core.models.position import LearnedPositionEmbedding, SinePositionEmbedding, embed_points, sine_features


def test_sine_features_by_hand():
    features = sine_features(torch.tensor([1.5]), 4)
    expected = [math.sin(1.5), math.cos(1.5), math.sin(1.5 / 100), math.cos(1.5 / 100)]
    torch.testing.assert_close(features, torch.tensor([expected]))


def test_a_map_and_its_points_agree():
    """Cell (row i, column j) of an un-padded map lies at ((j + 1) / W, (i + 1) / H)."""
    height, width, dim = 3, 5, 16
    embedded = SinePositionEmbedding(dim)(torch.zeros(1, height, width, dtype=torch.bool))
    assert embedded.shape == (1, dim, height, width)
    x = (torch.arange(width) + 1) / width
    y = (torch.arange(height) + 1) / height
    points = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    torch.testing.assert_close(embedded[0].permute(1, 2, 0), embed_points(points, dim), rtol=0, atol=1e-4)


def test_padding_does_not_count():
    small = torch.zeros(1, 3, 5, dtype=torch.bool)
    padded = torch.ones(1, 7, 9, dtype=torch.bool)
    padded[:, :3, :5] = False
    embedding = SinePositionEmbedding(16)
    torch.testing.assert_close(embedding(padded)[:, :, :3, :5], embedding(small))


def test_fully_padded_rows_and_columns_are_finite():
    padded = torch.ones(1, 4, 4, dtype=torch.bool)
    padded[:, :2, :2] = False
    assert SinePositionEmbedding(8)(padded).isfinite().all()


def test_learned_puts_columns_before_rows():
    embedding = LearnedPositionEmbedding(8)
    embedded = embedding(torch.zeros(2, 3, 5, dtype=torch.bool))
    assert embedded.shape == (2, 8, 3, 5)
    assert torch.equal(embedded[1, :4, 2, 4], embedding.col_embed.weight[4])
    assert torch.equal(embedded[1, 4:, 2, 4], embedding.row_embed.weight[2])
    assert 0 <= embedding.row_embed.weight.min() <= embedding.row_embed.weight.max() <= 1


@pytest.mark.parametrize("size", [(51, 3), (3, 51)])
def test_learned_refuses_maps_that_are_too_large(size):
    embedding = LearnedPositionEmbedding(8)
    embedding(torch.zeros(1, 50, 50, dtype=torch.bool))
    with pytest.raises(UsageError) as caught:
        embedding(torch.zeros(1, *size, dtype=torch.bool))
    assert caught.value.where == "model.position_embedding"

from __future__ import annotations

import pytest
import torch

from core.config.schema import ModelConfig
from core.models.layers import MultiheadAttention

CONFIG = ModelConfig(hidden_dim=16, num_heads=4, dropout=0.0)


@pytest.mark.parametrize("is_padded", [False, True])
def test_attention_is_pytorchs(is_padded):
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(CONFIG), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = (torch.randn(2, length, 16) for length in (3, 5, 5))
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if is_padded else None
    expected, _ = theirs(query, key, value, key_padding_mask=mask)
    torch.testing.assert_close(ours(query, key, value, mask), expected)


def test_attention_drops_in_training_only():
    attention = MultiheadAttention(CONFIG.model_copy(update={"dropout": 0.5}))
    tokens = torch.randn(2, 5, 16)
    assert not torch.equal(attention(tokens, tokens, tokens), attention(tokens, tokens, tokens))
    attention.eval()
    assert torch.equal(attention(tokens, tokens, tokens), attention(tokens, tokens, tokens))

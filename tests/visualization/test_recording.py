"""What is recorded is what the model did, and recording does not touch it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.config.schema import LabelAugmentationConfig, LossConfig
from core.label_augmentation import augment_labels
from core.losses.matcher import Matcher
from core.models.conditional_decoder import ConditionalDecoderLayer
from core.models.detector import Detector
from core.models.specs import SPECS, DecoderFamily
from core.ops.roi_pool import pool_roi_tokens
from core.structures import ModelOutput, Target
from core.visualization.recording import (
    AttentionRecord,
    DenseLayer,
    LabelMatches,
    SparseLayer,
    best_queries,
    match_labels,
    record_attention,
)
from tests.models.test_detector import random_batch, small_detector

SIZES_HW = ((64, 96), (96, 64))


def recorded(model: Detector) -> tuple[ModelOutput, AttentionRecord]:
    with torch.no_grad(), record_attention(model) as record:
        return model(random_batch(*SIZES_HW)), record


def dense_module(layer: torch.nn.Module) -> torch.nn.Module:
    return layer.cross_attn if isinstance(layer, ConditionalDecoderLayer) else layer.multihead_attn


class Spy:
    """Remembers what a sparse attention was called with, and its answer."""

    def __init__(self, inner) -> None:
        self.inner = inner
        self.calls: list[tuple[tuple, Tensor]] = []

    def __call__(self, *inputs, **options) -> Tensor:
        answer = self.inner(*inputs, **options)
        self.calls.append((inputs, answer))
        return answer


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_recording_changes_nothing(name: str, training: bool) -> None:
    model, batch = small_detector(name, dropout=0.3).train(training), random_batch(*SIZES_HW)
    model.backbone.eval()  # its statistics move in training, which is no attention's fault
    attentions = [layer.sparse_attention for layer in model.decoder.layers]
    torch.manual_seed(3)
    expected = model(batch)
    torch.manual_seed(3)
    with record_attention(model) as record:
        output = model(batch)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.boxes_cxcywh_norm, expected.boxes_cxcywh_norm)
    assert not any(layer.weights.requires_grad for layer in record.layers)
    assert all(layer.sparse_attention is before for layer, before in zip(model.decoder.layers, attentions, strict=True))
    assert not model.decoder._forward_pre_hooks
    assert not any(dense_module(layer)._forward_hooks for layer in model.decoder.layers)
    before = len(record.layers)
    model(batch)
    assert len(record.layers) == before  # nobody listens any more


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = small_detector("dela-detr")
    attention = model.decoder.layers[0].sparse_attention
    with pytest.raises(RuntimeError, match="stop"), record_attention(model):
        raise RuntimeError("stop")
    assert model.decoder.layers[0].sparse_attention is attention
    assert not model.decoder._forward_pre_hooks


@pytest.mark.parametrize("name", SPECS)
def test_each_layer_is_recorded_once_and_weights_sum_to_one(name: str) -> None:
    model = small_detector(name).eval()
    _, record = recorded(model)
    kinds = [SparseLayer if model.spec.is_sparse and index else DenseLayer for index in range(3)]
    assert [type(layer) for layer in record.layers] == kinds
    assert torch.equal(record.sizes_hw, torch.tensor(SIZES_HW))
    for layer in record.layers:
        shape = (3, 3) if isinstance(layer, DenseLayer) else (3, 4, 4)
        assert layer.weights.shape == (2, 4, 7, *shape)
        assert layer.weights.min() >= 0
        torch.testing.assert_close(layer.weights.flatten(3).sum(-1), torch.ones(2, 4, 7))
    with torch.no_grad(), record_attention(model) as record:
        for _ in range(2):
            model(random_batch(*SIZES_HW))
    assert len(record.layers) == 3  # of the last call


def test_padded_cells_get_nothing() -> None:
    for name in ("detr", "conddetr"):
        _, record = recorded(small_detector(name).eval())
        for layer in record.layers:
            wide, high = layer.weights  # 64 x 96 and 96 x 64 pixels are 2 x 3 and 3 x 2 cells of 3 x 3
            assert wide[..., 2, :].abs().max() == 0
            assert high[..., 2].abs().max() == 0
            assert wide[..., :2, :].min() > 0
            assert high[..., :2].min() > 0


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.is_sparse])
@pytest.mark.parametrize("switches", [{"attention": "plain"}, {"attention": "fast", "num_feature_levels": 4}])
def test_sparse_weights_give_what_the_layer_gathered(name: str, switches: dict) -> None:
    model = small_detector(name, **switches).eval()
    spy = Spy(model.decoder.layers[0].sparse_attention)
    for layer in model.decoder.layers:
        layer.sparse_attention = spy
    _, record = recorded(model)
    sparse = [layer for layer in record.layers if isinstance(layer, SparseLayer)]
    assert len(sparse) == len(spy.calls) == 2
    for layer, (inputs, gathered) in zip(sparse, spy.calls, strict=True):
        _content, _position, pyramid, boxes, projection = inputs
        assert torch.equal(layer.boxes_xyxy_px, boxes)
        assert layer.strides == model.strides
        tokens, _ = pool_roi_tokens(pyramid, boxes, 4)
        values = projection.value(tokens).unflatten(-1, (4, -1))
        again = torch.einsum("bhqn,bqnhc->bqhc", layer.weights.flatten(3), values).flatten(2)
        torch.testing.assert_close(again, gathered, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_dense_weights_give_what_the_layer_gathered(name: str) -> None:
    model = small_detector(name).eval()
    seen = []
    modules = [dense_module(layer) for layer in model.decoder.layers]
    for module in modules:
        module.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs, output)))
    _, record = recorded(model)
    dense = [layer for layer in record.layers if isinstance(layer, DenseLayer)]
    assert len(dense) == len(seen) == (1 if model.spec.is_sparse else 3)
    for layer, (module, inputs, output) in zip(dense, seen, strict=True):
        value = inputs[2]
        if isinstance(module, torch.nn.MultiheadAttention):
            weight, bias = module.in_proj_weight.chunk(3)[2], module.in_proj_bias.chunk(3)[2]
            value = (value @ weight.T + bias).unflatten(-1, (4, -1))
        again = module.out_proj(torch.einsum("bhqn,bnhc->bqhc", layer.weights.flatten(3), value).flatten(2))
        torch.testing.assert_close(again, output, rtol=1e-5, atol=1e-5)


def random_output(num_queries: int, num_classes: int = 3) -> ModelOutput:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 1, num_queries, num_classes + 1, generator=generator)
    return ModelOutput(logits, torch.rand(2, 1, num_queries, 4, generator=generator) * 0.4 + 0.2)


def random_target(num_labels: int) -> Target:
    generator = torch.Generator().manual_seed(4)
    boxes = torch.rand(num_labels, 4, generator=generator) * 0.4 + 0.2
    return Target(boxes, torch.randint(3, (num_labels,), generator=generator))


def matched(
    num_labels: int, num_queries: int = 20, two_stage: bool = False, **policy: float
) -> tuple[LabelMatches, LabelAugmentationConfig, Matcher]:
    config = LabelAugmentationConfig(**policy, two_stage_match=two_stage)
    matcher = Matcher(LossConfig(), DecoderFamily.DETR, two_stage)
    generator = torch.Generator().manual_seed(9)
    found = match_labels(random_output(num_queries), random_target(num_labels), config, matcher, generator)
    return found, config, matcher


POLICIES = [{}, {"repeat_time": 3}, {"repeat_ratio": 0.7}, {"repeat_ratio": 0.7, "two_stage": True}]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("num_labels", [0, 1, 4, 9])
def test_labels_are_matched_as_in_training(policy: dict, num_labels: int) -> None:
    found, config, matcher = matched(num_labels, **policy)
    target = random_target(num_labels)
    trained_on = augment_labels(target, config, 20, torch.Generator().manual_seed(9))
    last = ModelOutput(*(each[-1:] for each in random_output(20)))
    query, index = matcher(last, [trained_on]).of(0, 0)
    by_query = {int(q): int(i) for q, i in zip(query, index, strict=True)}
    assert found.query_index.tolist() == sorted(by_query)
    for row, query_index in enumerate(found.query_index.tolist()):
        expected = by_query[query_index]
        label = int(found.label_index[row])
        assert torch.equal(target.boxes_cxcywh_norm[label], trained_on.boxes_cxcywh_norm[expected])
        assert target.labels[label] == trained_on.labels[expected]
        copy = 0 if trained_on.copy_index is None else int(trained_on.copy_index[expected])
        assert int(found.copy_index[row]) == copy
        assert torch.equal(found.query_boxes_cxcywh_norm[row], last.boxes_cxcywh_norm[0, 0, query_index])


def test_each_label_has_a_query_for_each_time_it_is_repeated() -> None:
    found, _, _ = matched(4, repeat_time=3)
    for label in range(4):
        assert [copy for _, copy in found.of(label)] == [0, 1, 2]
    assert len(set(found.query_index.tolist())) == 12
    once, _, _ = matched(4)
    assert [len(once.of(label)) for label in range(4)] == [1] * 4


def test_labels_beyond_the_queries_have_none() -> None:
    found, _, _ = matched(9, num_queries=5)
    assert sorted(len(found.of(label)) for label in range(9)) == [0] * 4 + [1] * 5


def test_the_surest_queries_that_repeat_no_other() -> None:
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.3, 0.7, 0.2, 0.2]])
    last = torch.tensor([[4.0, 0, 0], [5, 0, 0], [0, 3, 0], [0, 0, 9]])  # the third class of softmax is "no object"
    output = ModelOutput(torch.stack([-last, last])[:, None], boxes.expand(2, 1, 4, 4))
    softmax = best_queries(output, DecoderFamily.DETR, nms_iou=0.7, count=2)
    assert softmax.query_index.tolist() == [1, 2]
    assert softmax.labels[-1].tolist() == [0, 1]
    torch.testing.assert_close(softmax.scores[-1, 0], last[1].softmax(-1)[0])
    torch.testing.assert_close(softmax.boxes_xyxy_norm[0, 0], torch.tensor([0.21, 0.2, 0.41, 0.4]))
    sigmoid = best_queries(output, DecoderFamily.CONDITIONAL, nms_iou=1.0, count=3)
    assert sigmoid.query_index.tolist() == [3, 1, 0]
    assert softmax.scores.shape == (2, 2)

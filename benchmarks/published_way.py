"""The detector computed in the way of the published code: the same weights and numbers, many times the work.

What that way is, beside ours:

- In the first decoder layer the encoder's memory and its positions are copied for every query, and copies projected.
- Features and positions of each level are joined to 2 D channels and cropped by RoIAlign, also after the last layer,
  where nobody needs them; keys and values of every RoI token are projected.
- Attention writes its weights down, and averages them over the heads for a caller who ignores them.
- Frozen batch norm multiplies and adds after each convolution; maps are laid out channel by channel.
- Layers are matched and compared one after the other; dropout and AdamW are PyTorch's as they come.

Where it was not known how the published code lays tensors out, the faster of two ways is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d, roi_align

from core.assembly import Assembly
from core.config.schema import BackboneConfig, ModelConfig
from core.losses.criterion import Criterion, Losses, Normalisers
from core.models.backbone import Backbone, ResNetBackbone
from core.models.conditional_decoder import ConditionalDecoderLayer
from core.models.detector import Detector
from core.models.detr_decoder import DetrDecoderLayer
from core.models.encoder import EncodedImages, EncoderLayer
from core.models.layers import ProjectedAttention, TransformerLayer
from core.models.specs import DecoderFamily
from core.ops.boxes import cxcywh_to_xyxy, norm_to_px
from core.ops.roi_pool import SAMPLING_RATIO, FeaturePyramid, finite_boxes
from core.structures import ImageBatch, ModelOutput, Target


def published_way(assembly: Assembly) -> Assembly:
    """Return the same model and criterion, computed in the published way; weights are copies.

    Raises:
        ValueError: the backbone is not a torchvision ResNet with frozen batch norm.
    """
    model, config = assembly.model, assembly.config
    backbone = PublishedBackbone(config.backbone, model.backbone)
    published = PublishedDetector(config.model, backbone, model.num_classes)
    published.load_state_dict(model.state_dict())
    criterion = LayerwiseCriterion(
        config.loss, config.label_augmentation, assembly.spec.family, assembly.criterion.num_classes
    )
    return replace(
        assembly, model=published.train(model.training), criterion=criterion.train(assembly.criterion.training)
    )


def published_optimizer(ours: torch.optim.Optimizer) -> torch.optim.AdamW:
    """Return AdamW over the same groups, with none of PyTorch's faster implementations asked for."""
    groups = [{"name": group["name"], "params": group["params"], "lr": group["lr"]} for group in ours.param_groups]
    return torch.optim.AdamW(groups, weight_decay=ours.param_groups[0]["weight_decay"])


class PublishedBackbone(ResNetBackbone):
    """A ResNet whose frozen batch norm is an operation of its own.

    Args:
        config: names the ResNet.
        ours: whose weights to copy.
    """

    def __init__(self, config: BackboneConfig, ours: Backbone) -> None:
        if config.norm != "frozen_batch_norm" or config.name.startswith("timm/"):
            raise ValueError("the published way has a torchvision ResNet with frozen batch norm")
        options: dict[str, Any] = {
            "norm_layer": FrozenBatchNorm2d,
            "replace_stride_with_dilation": (False, False, config.dilation),
        }
        if config.name == "resnet10":
            network = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], **options)
        else:
            network = torchvision.models.get_model(config.name, weights=None, **options)
        super().__init__(network, len(ours.strides), config.dilation)
        self.load_state_dict(ours.state_dict())
        if config.freeze_stem:
            for name in ("conv1", "bn1", "layer1"):
                self.freeze(self.body[name])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        current, features = pixels.contiguous(), []
        for name, part in self.body.items():
            current = part(current)
            if name in self.taps:
                features.append(current)
        return features


class PublishedDetector(Detector):
    """A detector of published attention layers; keys are those of `Detector`."""

    def __init__(self, config: ModelConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config.model_copy(update={"attention": "plain"}), backbone, num_classes)
        self.encoder.layers = nn.ModuleList(PublishedEncoderLayer(config) for _ in range(config.num_encoder_layers))
        is_sparse, layers = self.spec.is_sparse, range(config.num_decoder_layers)
        if self.spec.family is DecoderFamily.DETR:
            self.decoder.layers = nn.ModuleList(PublishedDetrLayer(config, is_sparse) for _ in layers)
        else:
            self.decoder.layers = nn.ModuleList(
                PublishedConditionalLayer(config, is_sparse, is_first=index == 0) for index in layers
            )
        self.to(memory_format=torch.contiguous_format)

    def forward(self, batch: ImageBatch) -> ModelOutput:
        """See `Detector.forward`."""
        images = self.encode(batch)
        pyramid = images.pyramid
        images = replace(images, pyramid=JoinedPyramid(pyramid.features, pyramid.positions, pyramid.strides))
        output: ModelOutput = self.decoder(self.query_embed.weight, images)
        if self.spec.is_sparse:
            last_boxes = cxcywh_to_xyxy(output.boxes_cxcywh_norm[-1])
            crop_tokens(images.pyramid, norm_to_px(last_boxes, images.sizes_hw), self.config.roi_resolution)
        return output


@dataclass(frozen=True)
class JoinedPyramid(FeaturePyramid):
    """A pyramid whose features and positions are cropped together."""

    @cached_property
    def joined(self) -> list[Tensor]:
        """Per level (B, 2 D, Hl, Wl), in the precision that RoIAlign needs."""
        exact = torch.promote_types(self.features[0].dtype, torch.float32)
        return [
            torch.cat([level.to(exact), position.to(exact)], dim=1).contiguous()
            for level, position in zip(self.features, self.positions, strict=True)
        ]


def crop_tokens(pyramid: FeaturePyramid, boxes_xyxy_px: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of boxes (B, Q, 4) and their positions, each (N, B x Q, D)."""
    assert isinstance(pyramid, JoinedPyramid)
    boxes = list(finite_boxes(boxes_xyxy_px).to(pyramid.joined[0].dtype))
    crops = [
        roi_align(level, boxes, resolution, 1 / stride, SAMPLING_RATIO, aligned=True).flatten(2)
        for level, stride in zip(pyramid.joined, pyramid.strides, strict=True)
    ]
    cells = torch.cat(crops, dim=2).permute(2, 0, 1).to(pyramid.features[0].dtype).contiguous()
    tokens, positions = cells.chunk(2, dim=-1)
    return tokens, positions


def copy_for_queries(cells: Tensor, num_queries: int) -> Tensor:
    """Give every query a copy of its image's cells; (B, N, D) -> (N, B x Q, D)."""
    return cells.transpose(0, 1).repeat_interleave(num_queries, dim=1)


class WeighingAttention(nn.MultiheadAttention):
    """PyTorch's attention as it comes, which also returns the weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_dim, config.num_heads, dropout=config.dropout, batch_first=True)

    def forward(  # type: ignore[override]  # as ours has it
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Attend from (B, Q, D) to (B, N, D)."""
        attended, _ = super().forward(query, key, value, key_padding_mask=padding_mask, need_weights=True)
        return attended


class WeighingProjectedAttention(ProjectedAttention):
    """Likewise, for projected queries, keys and values (B, Q, h, dk)."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """See `ProjectedAttention.forward`."""
        logits = (query.shape[-1] ** -0.5 * query.transpose(1, 2)) @ key.permute(0, 2, 3, 1)
        if padding_mask is not None:
            logits = logits.masked_fill(padding_mask[:, None, None], -torch.inf)
        weights = F.dropout(logits.softmax(dim=-1), self.current_dropout)
        gathered = weights @ value.transpose(1, 2)
        weights.mean(dim=1)
        output: Tensor = self.out_proj(gathered.transpose(1, 2).flatten(2))
        return output


class SingleOperations(TransformerLayer):
    """Residual branches and feed-forward block as PyTorch's operations one after the other."""

    def _residual(self, state: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        if self.pre_norm:
            return state + self.dropout(branch(norm(state)))
        summed: Tensor = norm(state + self.dropout(branch(state)))
        return summed

    def _feed_forward(self, state: Tensor) -> Tensor:
        output: Tensor = self.linear2(self.dropout(F.relu(self.linear1(state))))
        return output


class PublishedEncoderLayer(SingleOperations, EncoderLayer):
    """A layer of the encoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.self_attn = WeighingAttention(config)


class PublishedDetrLayer(SingleOperations, DetrDecoderLayer):
    """A layer of DETR's decoder in which every query has cells or tokens of its own."""

    def __init__(self, config: ModelConfig, is_sparse: bool) -> None:
        super().__init__(config, _refuse)
        self.is_sparse = is_sparse
        self.roi_resolution = config.roi_resolution
        self.dropout = nn.Dropout(config.dropout)
        self.self_attn = WeighingAttention(config)
        self.multihead_attn = WeighingAttention(config)

    def _attend_cells(self, queries: Tensor, images: EncodedImages) -> Tensor:
        if not self.is_sparse:
            return super()._attend_cells(queries, images)
        num_queries = queries.shape[1]
        memory = copy_for_queries(images.memory, num_queries)
        placed = memory + copy_for_queries(images.positions, num_queries)
        return self._attend_own(queries, placed, memory, images.padding_mask.repeat_interleave(num_queries, dim=0))

    def _attend_boxes(self, queries: Tensor, pyramid: FeaturePyramid, boxes_xyxy_px: Tensor) -> Tensor:
        tokens, positions = crop_tokens(pyramid, boxes_xyxy_px, self.roi_resolution)
        return self._attend_own(queries, tokens + positions, tokens)

    def _attend_own(self, queries: Tensor, keys: Tensor, values: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Attend from (B, Q, D) to each query's own (N, B x Q, D)."""
        single = queries.flatten(0, 1)[:, None]
        attended: Tensor = self.multihead_attn(single, keys.transpose(0, 1), values.transpose(0, 1), padding_mask)
        return attended.view_as(queries)


class PublishedConditionalLayer(SingleOperations, ConditionalDecoderLayer):
    """Likewise, of Conditional DETR's decoder."""

    def __init__(self, config: ModelConfig, is_sparse: bool, is_first: bool) -> None:
        super().__init__(config, is_first, _refuse)
        self.is_sparse = is_sparse
        self.roi_resolution = config.roi_resolution
        self.dropout = nn.Dropout(config.dropout)
        self.self_attn = WeighingProjectedAttention(config.hidden_dim, config.dropout)
        self.cross_attn = WeighingProjectedAttention(config.hidden_dim, config.dropout)

    def _attend_cells(self, content: Tensor, position: Tensor, images: EncodedImages) -> Tensor:
        if not self.is_sparse:
            return super()._attend_cells(content, position, images)
        num_queries = content.shape[1]
        memory = copy_for_queries(images.memory, num_queries)
        positions = copy_for_queries(images.positions, num_queries)
        padding_mask = images.padding_mask.repeat_interleave(num_queries, dim=0)
        return self._attend_own(content, position, memory, positions, padding_mask)

    def _attend_boxes(self, content: Tensor, position: Tensor, images: EncodedImages, boxes_xyxy_px: Tensor) -> Tensor:
        tokens, positions = crop_tokens(images.pyramid, boxes_xyxy_px, self.roi_resolution)
        return self._attend_own(content, position, tokens, positions)

    def _attend_own(
        self, content: Tensor, position: Tensor, tokens: Tensor, positions: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Attend from queries (B, Q, h, D/h) to each one's own (N, B x Q, D)."""
        key_content, key_position = self.ca_kcontent_proj(tokens), self.ca_kpos_proj(positions)
        if self.ca_qpos_proj is not None:
            key_content = key_content + key_position
        query = torch.cat([content, position], dim=-1).flatten(0, 1)[:, None]
        key = torch.cat([self._split_heads(key_content), self._split_heads(key_position)], dim=-1)
        value = self._split_heads(self.ca_v_proj(tokens))
        attended: Tensor = self.cross_attn(query, key.transpose(0, 1), value.transpose(0, 1), padding_mask)
        return attended.view(*content.shape[:2], -1)


def _refuse(*_: object, **__: object) -> Tensor:
    raise AssertionError("the published way has no sparse attention behind the interface")


class LayerwiseCriterion(Criterion):
    """Matches and compares one decoder layer after the other, each with a transfer of its own."""

    def forward(
        self,
        output: ModelOutput,
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
        normalisers: Normalisers | None = None,
    ) -> Losses:
        """See `Criterion.forward`."""
        targets = self.augment(targets, output.logits.shape[2], generator)
        first = 0 if self.loss.auxiliary else len(output.logits) - 1
        layers = range(first, len(output.logits))
        losses = [
            super(LayerwiseCriterion, self).forward(
                ModelOutput(*(values[layer : layer + 1] for values in output)), targets, None, normalisers
            )
            for layer in layers
        ]
        terms = dict(losses[-1].terms)
        for layer, each in zip(layers, losses[:-1], strict=False):
            terms |= {f"{name}_{layer}": value for name, value in each.terms.items() if name != "class_error"}
        return Losses(torch.stack([each.total for each in losses]).sum(), terms)

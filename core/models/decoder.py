"""The loop that all decoders run: attend, say class and box, look closer. Families differ in layer and start."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.config.schema import ModelConfig
from core.models.encoder import EncodedImages
from core.models.layers import ExactMLP
from core.models.specs import DecoderFamily, ModelSpec
from core.ops.boxes import cxcywh_to_xyxy, inverse_sigmoid, norm_to_px
from core.structures import ModelOutput


class Reference(NamedTuple):
    """Where the queries stand before a layer.

    Attributes:
        logits: (B, Q, 4), which a box head's output is added to before the sigmoid; zero where it has no say.
        centre: (B, Q, 2) as x, y in cxcywh_norm, where a conditional query looks.
    """

    logits: Tensor
    centre: Tensor

    @classmethod
    def first(cls, logits: Tensor) -> Reference:
        """Start from the logits (B, Q, 2 or 4) of centres or boxes; sizes not given start from zero.

        Boxes are sums onto these logits: in float32 or better they stay exact to the pixel under autocast.
        """
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return cls(F.pad(exact, (0, 4 - logits.shape[-1])), exact[..., :2].sigmoid())

    @classmethod
    def refined(cls, boxes_cxcywh_norm: Tensor) -> Reference:
        """Go on from a layer's boxes (B, Q, 4)."""
        return cls(inverse_sigmoid(boxes_cxcywh_norm), boxes_cxcywh_norm[..., :2])


class Decoder(nn.Module):
    """Turns queries into classes and boxes, layer after layer.

    Sparse models: each layer's boxes, detached, say where the next layer's queries look (paper, section 4.1),
    and with `box_refinement` what its boxes are relative to; each layer then has heads of its own.

    Args:
        config: dimensions and switches.
        spec: family and feature access.
        num_classes: C.
        layers: of the family.
    """

    def __init__(self, config: ModelConfig, spec: ModelSpec, num_classes: int, layers: list[nn.Module]) -> None:
        super().__init__()
        self.is_sparse = spec.is_sparse
        self.refines_boxes = spec.is_sparse and config.box_refinement
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.hidden_dim)
        class_head, box_head = _build_heads(config, spec, num_classes)
        num_heads = len(layers) if self.refines_boxes else 1
        class_heads = [copy.deepcopy(class_head) for _ in range(num_heads)]
        box_heads = [copy.deepcopy(box_head) for _ in range(num_heads)]
        if self.is_sparse:
            # First boxes are small: sigmoid(-2) = 0.12 of the image.
            nn.init.constant_(box_heads[0].last.bias[2:], -2.0)
        self.class_embed = nn.ModuleList(class_heads)
        self.bbox_embed = nn.ModuleList(box_heads)

    @abstractmethod
    def first_reference(self, query_pos: Tensor) -> Reference:
        """Return where queries with the embedding (B, Q, D) stand before the first layer."""

    @abstractmethod
    def run_layer(
        self,
        index: int,
        state: Tensor,
        query_pos: Tensor,
        reference: Reference,
        images: EncodedImages,
        boxes_xyxy_px: Tensor | None,
    ) -> Tensor:
        """Return the queries' next state, (B, Q, D), after attending to all cells or, if given, to their boxes."""

    def forward(self, query_embed: Tensor, images: EncodedImages) -> ModelOutput:
        """Decode.

        Args:
            query_embed: (Q, D), the queries' learned embedding.
            images: B encoded images.
        """
        query_pos = query_embed.expand(len(images.memory), -1, -1)
        state = torch.zeros_like(query_pos)
        reference = self.first_reference(query_pos)
        boxes_xyxy_px = None
        all_logits, all_boxes = [], []
        for index in range(len(self.layers)):
            state = self.run_layer(index, state, query_pos, reference, images, boxes_xyxy_px)
            normed = self.norm(state)
            head = index if self.refines_boxes else 0
            all_logits.append(self.class_embed[head](normed))
            all_boxes.append((self.bbox_embed[head](normed) + reference.logits).sigmoid())
            seen = all_boxes[-1].detach()
            if self.is_sparse:
                boxes_xyxy_px = norm_to_px(cxcywh_to_xyxy(seen), images.sizes_hw)
            if self.refines_boxes:
                reference = Reference.refined(seen)
        return ModelOutput(torch.stack(all_logits), torch.stack(all_boxes))


def _build_heads(config: ModelConfig, spec: ModelSpec, num_classes: int) -> tuple[nn.Linear, ExactMLP]:
    """Return the class and box head as they start; the original DETR alone keeps PyTorch's initialisation."""
    is_softmax = spec.family is DecoderFamily.DETR
    class_head = nn.Linear(config.hidden_dim, num_classes + 1 if is_softmax else num_classes)
    box_head = ExactMLP(config.hidden_dim, config.hidden_dim, config.hidden_dim, 4)
    if spec.is_sparse or not is_softmax:
        prior = 0.01
        nn.init.constant_(class_head.bias, -math.log((1 - prior) / prior))
        nn.init.zeros_(box_head.last.weight)
        nn.init.zeros_(box_head.last.bias)
    return class_head, box_head

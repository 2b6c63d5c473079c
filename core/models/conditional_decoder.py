"""Conditional DETR's decoder (Meng et al. 2021), dense, or sparse and refining as in DE-CondDETR.

Content and position have projections of their own, and the position that a query asks for is the sine embedding
of its reference point, scaled by what the query has seen so far.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.config.schema import ModelConfig
from core.models.decoder import Decoder, Reference
from core.models.encoder import EncodedImages
from core.models.layers import MLP, ExactMLP, ProjectedAttention, TransformerLayer, init_xavier
from core.models.position import embed_points
from core.models.specs import ModelSpec
from core.ops.boxes import inverse_sigmoid
from core.ops.sparse_attention import Affine, KeyValueProjection, SparseAttention


class ConditionalDecoderLayer(TransformerLayer):
    """Self-attention among queries, conditional cross-attention to the image, feed-forward block.

    Args:
        config: dimensions and switches.
        is_first: the first layer's cross-attention also knows the queries' embedding.
        sparse_attention: to use when boxes are given.
    """

    def __init__(self, config: ModelConfig, is_first: bool, sparse_attention: SparseAttention) -> None:
        super().__init__(config)
        self.sparse_attention = sparse_attention

        def projection() -> nn.Linear:
            return nn.Linear(config.hidden_dim, config.hidden_dim)

        self.sa_qcontent_proj = projection()
        self.sa_qpos_proj = projection()
        self.sa_kcontent_proj = projection()
        self.sa_kpos_proj = projection()
        self.sa_v_proj = projection()
        self.self_attn = ProjectedAttention(config.hidden_dim, config.dropout)

        self.ca_qcontent_proj = projection()
        self.ca_qpos_proj = projection() if is_first else None
        self.ca_kcontent_proj = projection()
        self.ca_kpos_proj = projection()
        self.ca_v_proj = projection()
        self.ca_qpos_sine_proj = projection()
        self.cross_attn = ProjectedAttention(config.hidden_dim, config.dropout)

        self.norm1 = nn.LayerNorm(config.hidden_dim)
        self.norm2 = nn.LayerNorm(config.hidden_dim)
        self.norm3 = nn.LayerNorm(config.hidden_dim)

    def forward(
        self,
        state: Tensor,
        query_pos: Tensor,
        query_sine: Tensor,
        images: EncodedImages,
        boxes_xyxy_px: Tensor | None,
    ) -> Tensor:
        """Attend to all cells, or to the tokens in boxes (B, Q, 4) if given; all other tensors are (B, Q, D)."""

        def attend_queries(queries: Tensor) -> Tensor:
            query = self.sa_qcontent_proj(queries) + self.sa_qpos_proj(query_pos)
            key = self.sa_kcontent_proj(queries) + self.sa_kpos_proj(query_pos)
            heads = (self._split_heads(tokens) for tokens in (query, key, self.sa_v_proj(queries)))
            attended: Tensor = self.self_attn(*heads)
            return attended

        def attend_images(queries: Tensor) -> Tensor:
            content = self.ca_qcontent_proj(queries)
            if self.ca_qpos_proj is not None:
                content = content + self.ca_qpos_proj(query_pos)
            content, position = self._split_heads(content), self._split_heads(self.ca_qpos_sine_proj(query_sine))
            if boxes_xyxy_px is None:
                return self._attend_cells(content, position, images)
            return self._attend_boxes(content, position, images, boxes_xyxy_px)

        state = self._residual(state, attend_queries, self.norm1)
        state = self._residual(state, attend_images, self.norm2)
        return self._residual(state, self._feed_forward, self.norm3)

    def _attend_cells(self, content: Tensor, position: Tensor, images: EncodedImages) -> Tensor:
        key_content, key_position = self.ca_kcontent_proj(images.memory), self.ca_kpos_proj(images.positions)
        if self.ca_qpos_proj is not None:
            key_content = key_content + key_position
        query = torch.cat([content, position], dim=-1)
        key = torch.cat([self._split_heads(key_content), self._split_heads(key_position)], dim=-1)
        value = self._split_heads(self.ca_v_proj(images.memory))
        attended: Tensor = self.cross_attn(query, key, value, images.padding_mask)
        return attended

    def _attend_boxes(self, content: Tensor, position: Tensor, images: EncodedImages, boxes_xyxy_px: Tensor) -> Tensor:
        gathered = self.sparse_attention(
            content,
            position,
            images.pyramid,
            boxes_xyxy_px,
            KeyValueProjection(
                content_key=_affine(self.ca_kcontent_proj),
                value=_affine(self.ca_v_proj),
                position_key=_affine(self.ca_kpos_proj),
            ),
            scale=(content.shape[-1] + position.shape[-1]) ** -0.5,
            dropout=self.cross_attn.current_dropout,
        )
        attended: Tensor = self.cross_attn.out_proj(gathered)
        return attended


def _affine(layer: nn.Linear) -> Affine:
    return Affine(layer.weight, layer.bias)


class ConditionalDecoder(Decoder):
    """Decoder of conddetr, de-conddetr and dela-conddetr.

    Args:
        config: dimensions and switches.
        spec: row of the model.
        num_classes: C.
        sparse_attention: of the second and later layers of sparse models.
    """

    def __init__(
        self, config: ModelConfig, spec: ModelSpec, num_classes: int, sparse_attention: SparseAttention
    ) -> None:
        layers = [
            ConditionalDecoderLayer(config, is_first=index == 0, sparse_attention=sparse_attention)
            for index in range(config.num_decoder_layers)
        ]
        super().__init__(config, spec, num_classes, list(layers))
        dim = config.hidden_dim
        self.hidden_dim = dim
        self.query_scale = MLP(dim, dim, dim)
        self.ref_point_head = ExactMLP(dim, dim, 2)
        for module in (self.layers, self.query_scale, self.ref_point_head):
            init_xavier(module)
        for layer in layers:
            nn.init.zeros_(layer.self_attn.out_proj.bias)
            nn.init.zeros_(layer.cross_attn.out_proj.bias)

    def first_reference(self, query_pos: Tensor) -> Reference:
        """Return the queries' own reference points (Conditional DETR, section 3.3)."""
        reference = Reference.first(self.ref_point_head(query_pos))
        if self.is_sparse:
            return reference
        # The dense model goes from the point back to its logits, which bounds them.
        return Reference.first(inverse_sigmoid(reference.centre))._replace(centre=reference.centre)

    def run_layer(
        self,
        index: int,
        state: Tensor,
        query_pos: Tensor,
        reference: Reference,
        images: EncodedImages,
        boxes_xyxy_px: Tensor | None,
    ) -> Tensor:
        """See `Decoder.run_layer`."""
        query_sine = embed_points(reference.centre, self.hidden_dim)
        if index > 0:
            query_sine = query_sine * self.query_scale(state)
        next_state: Tensor = self.layers[index](state, query_pos, query_sine, images, boxes_xyxy_px)
        return next_state

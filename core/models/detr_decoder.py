"""DETR's decoder (Carion et al. 2020), dense, or sparse and refining as in DE-DETR."""

from __future__ import annotations

from torch import Tensor, nn

from core.config.schema import ModelConfig
from core.models.decoder import Decoder, Reference
from core.models.encoder import EncodedImages
from core.models.layers import ExactMLP, MultiheadAttention, TransformerLayer, init_xavier
from core.models.specs import ModelSpec
from core.ops.roi_pool import FeaturePyramid
from core.ops.sparse_attention import KeyValueProjection, SparseAttention


class DetrDecoderLayer(TransformerLayer):
    """Self-attention among queries, cross-attention to the image, feed-forward block (DETR, figure 10)."""

    def __init__(self, config: ModelConfig, sparse_attention: SparseAttention) -> None:
        super().__init__(config)
        dim = config.hidden_dim
        self.sparse_attention = sparse_attention
        self.self_attn = MultiheadAttention(config)
        self.multihead_attn = MultiheadAttention(config)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, state: Tensor, query_pos: Tensor, images: EncodedImages, boxes_xyxy_px: Tensor | None) -> Tensor:
        """(B, Q, D), (B, Q, D) -> (B, Q, D); attends to all cells, or to the tokens in boxes (B, Q, 4) if given."""

        def attend_queries(queries: Tensor) -> Tensor:
            placed = queries + query_pos
            attended: Tensor = self.self_attn(placed, placed, queries)
            return attended

        def attend_images(queries: Tensor) -> Tensor:
            placed = queries + query_pos
            if boxes_xyxy_px is None:
                return self._attend_cells(placed, images)
            return self._attend_boxes(placed, images.pyramid, boxes_xyxy_px)

        state = self._residual(state, attend_queries, self.norm1)
        state = self._residual(state, attend_images, self.norm2)
        return self._residual(state, self._feed_forward, self.norm3)

    def _attend_cells(self, queries: Tensor, images: EncodedImages) -> Tensor:
        keys = images.memory + images.positions
        attended: Tensor = self.multihead_attn(queries, keys, images.memory, images.padding_mask)
        return attended

    def _attend_boxes(self, queries: Tensor, pyramid: FeaturePyramid, boxes_xyxy_px: Tensor) -> Tensor:
        attention = self.multihead_attn
        query, key, value = attention.projections()
        gathered = self.sparse_attention(
            self._split_heads(query(queries)),
            None,
            pyramid,
            boxes_xyxy_px,
            KeyValueProjection(content_key=key, value=value),
            scale=attention.head_dim**-0.5,
            dropout=attention.current_dropout,
        )
        attended: Tensor = attention.out_proj(gathered)
        return attended


class DetrDecoder(Decoder):
    """Decoder of detr, de-detr and dela-detr.

    Args:
        config: dimensions and switches.
        spec: row of the model.
        num_classes: C.
        sparse_attention: of the second and later layers of sparse models.
    """

    def __init__(
        self, config: ModelConfig, spec: ModelSpec, num_classes: int, sparse_attention: SparseAttention
    ) -> None:
        layers = [DetrDecoderLayer(config, sparse_attention) for _ in range(config.num_decoder_layers)]
        super().__init__(config, spec, num_classes, list(layers))
        dim = config.hidden_dim
        self.ref_point_head = ExactMLP(dim, dim, config.reference_dim) if spec.is_sparse else None
        init_xavier(self.layers)

    def first_reference(self, query_pos: Tensor) -> Reference:
        """Return the queries' own references; without a head for them boxes are relative to nothing."""
        if self.ref_point_head is None:
            return Reference.first(query_pos.new_zeros(*query_pos.shape[:2], 4))
        return Reference.first(self.ref_point_head(query_pos))

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
        next_state: Tensor = self.layers[index](state, query_pos, images, boxes_xyxy_px)
        return next_state

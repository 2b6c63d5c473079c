"""The detector: backbone, encoder and decoder, put together from a row of the table of six."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from core.config.schema import ModelConfig
from core.errors import UsageError
from core.models.backbone import Backbone
from core.models.conditional_decoder import ConditionalDecoder
from core.models.decoder import Decoder
from core.models.detr_decoder import DetrDecoder
from core.models.encoder import EncodedImages, Encoder
from core.models.freezing import Freezable
from core.models.position import LearnedPositionEmbedding, SinePositionEmbedding
from core.models.specs import DecoderFamily, ModelSpec, get_spec
from core.ops.absorbed_attention import AbsorbedSparseAttention
from core.ops.roi_pool import FeaturePyramid
from core.ops.sparse_attention import PlainSparseAttention, SparseAttention
from core.ops.triton_attention import TritonSparseAttention
from core.structures import ImageBatch, ModelOutput

_NORM_GROUPS = 32


class Detector(Freezable):
    """A detection transformer: images in, classes and boxes of every decoder layer out.

    Args:
        config: dimensions and switches.
        backbone: makes the feature maps, the deepest one last.
        num_classes: C.

    Attributes:
        spec: the model's row in the table of six.

    Raises:
        UsageError: switches that do not go together.
    """

    def __init__(self, config: ModelConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.spec = get_spec(config.name)
        self.num_classes = num_classes
        _check_switches(config, self.spec)
        num_levels = num_pyramid_levels(config)
        _check_backbone(config, backbone, num_levels)
        self.backbone = backbone
        self.has_extra_level = num_levels == 4
        self.strides = backbone.strides + ((2 * backbone.strides[-1],) if self.has_extra_level else ())
        self.position_embedding = _build_position_embedding(config)
        self.input_proj = _build_input_projections(config, backbone, num_levels)
        self.encoder = Encoder(config)
        self.query_embed = nn.Embedding(config.num_queries, config.hidden_dim)
        self.decoder = _build_decoder(config, self.spec, num_classes)

    def forward(self, batch: ImageBatch) -> ModelOutput:
        """Return logits and boxes of all L decoder layers for B images; see `ModelOutput`."""
        output: ModelOutput = self.decoder(self.query_embed.weight, self.encode(batch))
        return output

    def require_side(self, side_px: int) -> None:
        """Check that images of this long side fit the position embedding.

        Raises:
            UsageError: they do not, as learned embeddings are a table of limited size.
        """
        if isinstance(self.position_embedding, LearnedPositionEmbedding):
            self.position_embedding.require_cells(-(-side_px // min(self.strides)))

    def encode(self, batch: ImageBatch) -> EncodedImages:
        """Return what the decoder sees: all levels projected, the backbone's deepest one encoded besides.

        Raises:
            UsageError: a map is too large for learned position embeddings.
        """
        features = self.backbone(batch.pixels)
        deepest = len(features) - 1
        if self.has_extra_level:
            features = [*features, features[-1]]
        levels = [project(feature) for project, feature in zip(self.input_proj, features, strict=True)]
        masks = [resize_mask(batch.padding_mask, level.shape[-2:]) for level in levels]
        positions = [self.position_embedding(mask).to(level.dtype) for mask, level in zip(masks, levels, strict=True)]
        cells, cell_positions = _flatten(levels[deepest]), _flatten(positions[deepest])
        padding_mask = masks[deepest].flatten(1)
        memory = self.encoder(cells, cell_positions, padding_mask)
        levels[deepest] = memory.transpose(1, 2).unflatten(2, levels[deepest].shape[-2:])
        pyramid = FeaturePyramid(levels, positions, self.strides)
        return EncodedImages(memory, cell_positions, padding_mask, pyramid, batch.sizes_hw)


def build_detector(config: ModelConfig, backbone: Backbone, num_classes: int) -> Detector:
    """Return a detector as it starts training; torch's global seed decides on its weights.

    Args:
        config: dimensions and switches.
        backbone: with `num_backbone_levels(config)` feature maps.
        num_classes: C.

    Raises:
        UsageError: there is no such model, or its switches do not go together.
        MachineError: the RoI backend is not installed, or Triton's kernels do not run here.
    """
    return Detector(config, backbone, num_classes)


def num_pyramid_levels(config: ModelConfig) -> int:
    """Return how many projected feature levels a model has; dense models have one."""
    return config.num_feature_levels if get_spec(config.name).is_sparse else 1


def num_backbone_levels(config: ModelConfig) -> int:
    """Return how many feature maps a model wants from its backbone; a fourth level is its own."""
    return min(num_pyramid_levels(config), 3)


def resize_mask(padding_mask: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    """Resize a padding mask to a feature map by nearest neighbour; (B, H, W) bool -> (B, *size_hw) bool."""
    return F.interpolate(padding_mask[None].float(), size=size_hw, mode="nearest")[0].bool()


def _flatten(level: Tensor) -> Tensor:
    """(B, D, H, W) -> (B, H x W, D), row by row."""
    return level.flatten(2).transpose(1, 2)


def _check_switches(config: ModelConfig, spec: ModelSpec) -> None:
    if config.pre_norm and config.name != "detr":
        raise UsageError(f"pre-norm is not defined for {config.name}", where="model.pre_norm", hint="only detr has it")
    if config.reference_dim == 4 and not (spec.is_sparse and spec.family is DecoderFamily.DETR):
        raise UsageError(
            f"{config.name} has no initial boxes, so a reference of 4 values is not defined",
            where="model.reference_dim",
            hint="only de-detr and dela-detr have them",
        )
    if config.attention != "plain" and config.roi_backend != "torchvision":
        raise UsageError(
            f"the {config.attention} attention does not crop by {config.roi_backend}",
            where="model.roi_backend",
            hint="use model.attention=plain with it, which gives the same numbers",
        )
    if config.num_decoder_layers == 1 and config.name != "detr":
        # Its parts for later layers would be parameters without a gradient.
        raise UsageError(
            f"a single decoder layer leaves {config.name} nothing of its own",
            where="model.num_decoder_layers",
            hint="use at least 2",
        )
    if num_pyramid_levels(config) > 1 and config.hidden_dim % _NORM_GROUPS:
        raise UsageError(
            f"hidden_dim {config.hidden_dim} is not divisible by {_NORM_GROUPS}, the groups of the levels' norm",
            where="model.hidden_dim",
            hint=f"use a multiple of {_NORM_GROUPS}, or model.num_feature_levels=1",
        )


def _check_backbone(config: ModelConfig, backbone: Backbone, num_levels: int) -> None:
    wanted = num_backbone_levels(config)
    if len(backbone.strides) != wanted:
        raise ValueError(f"{config.name} with {num_levels} levels needs {wanted} maps, not {len(backbone.strides)}")


def _build_position_embedding(config: ModelConfig) -> nn.Module:
    if config.position_embedding == "learned":
        return LearnedPositionEmbedding(config.hidden_dim)
    return SinePositionEmbedding(config.hidden_dim)


def _build_input_projections(config: ModelConfig, backbone: Backbone, num_levels: int) -> nn.ModuleList:
    """Return a convolution to D channels for each level, normed where there are several (Deformable DETR)."""
    dim = config.hidden_dim
    convolutions = [nn.Conv2d(channels, dim, kernel_size=1) for channels in backbone.num_channels]
    if num_levels > len(convolutions):
        convolutions.append(nn.Conv2d(backbone.num_channels[-1], dim, kernel_size=3, stride=2, padding=1))
    if num_levels == 1:
        return nn.ModuleList([nn.Sequential(*convolutions)])
    return nn.ModuleList(nn.Sequential(each, nn.GroupNorm(_NORM_GROUPS, dim)) for each in convolutions)


def _build_decoder(config: ModelConfig, spec: ModelSpec, num_classes: int) -> Decoder:
    decoder = DetrDecoder if spec.family is DecoderFamily.DETR else ConditionalDecoder
    return decoder(config, spec, num_classes, _build_sparse_attention(config))


def _build_sparse_attention(config: ModelConfig) -> SparseAttention:
    if config.attention == "fast":
        return AbsorbedSparseAttention(config.roi_resolution)
    if config.attention == "triton":
        return TritonSparseAttention(config.roi_resolution)
    return PlainSparseAttention(config.roi_resolution, config.roi_backend)

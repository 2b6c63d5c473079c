"""THE table of six: every model is a decoder, the features its cross-attention sees, and a label policy.

A seventh model is one more row here (see CONTRIBUTING). This module knows no torch, so that the command
line can list the models without loading it. Source: ECCV 2022, "Towards Data-Efficient Detection
Transformers", sections 4 and 5, and the published training commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from core.errors import UsageError, nearest


class DecoderFamily(Enum):
    """Which decoder, and with it which classification head."""

    DETR = "detr"
    """DETR's decoder; softmax over C classes and "no object"."""
    CONDITIONAL = "conditional"
    """Conditional DETR's decoder; a sigmoid for each of C classes, focal loss."""


class FeatureAccess(Enum):
    """What the cross-attention of the second and later decoder layers looks at."""

    DENSE = "dense"
    """All tokens of the encoder."""
    SPARSE = "sparse"
    """RoI tokens cropped where the query's own box is, from several feature levels (paper, 4.1 and 4.2)."""


@dataclass(frozen=True)
class ModelSpec:
    """One row of the table: what makes a model itself, and the settings it was published with."""

    name: str
    family: DecoderFamily
    features: FeatureAccess
    repeat_time: int | None
    """How often label augmentation repeats each label in training (paper, 4.3); None: once, no augmentation."""
    nms: bool
    num_queries: int
    epochs: int
    lr_drop_epoch: int

    @property
    def is_sparse(self) -> bool:
        """Whether queries attend to RoI tokens from the second decoder layer on."""
        return self.features is FeatureAccess.SPARSE

    def config_defaults(self) -> dict[str, Any]:
        """Return the row's settings as a layer of configuration (what presets, files and flags override)."""
        class_weight = 1.0 if self.family is DecoderFamily.DETR else 2.0
        return {
            "model": {"name": self.name, "num_queries": self.num_queries},
            "label_augmentation": {"repeat_time": self.repeat_time},
            "loss": {"class_weight": class_weight, "class_cost": class_weight},
            "postprocess": {"nms": self.nms},
            "schedule": {"epochs": self.epochs, "lr_drop_epoch": self.lr_drop_epoch},
        }


_DETR, _COND = DecoderFamily.DETR, DecoderFamily.CONDITIONAL
_DENSE, _SPARSE = FeatureAccess.DENSE, FeatureAccess.SPARSE

# fmt: off
SPECS: dict[str, ModelSpec] = {
    row.name: row
    for row in (
        #         name             decoder features repeat nms    queries epochs lr drop
        ModelSpec("detr",          _DETR, _DENSE,   None,  False, 100,    300,   200),
        ModelSpec("de-detr",       _DETR, _SPARSE,  None,  False, 100,    50,    40),
        ModelSpec("dela-detr",     _DETR, _SPARSE,  2,     True,  300,    50,    40),
        ModelSpec("conddetr",      _COND, _DENSE,   None,  False, 300,    50,    40),
        ModelSpec("de-conddetr",   _COND, _SPARSE,  None,  False, 300,    50,    40),
        ModelSpec("dela-conddetr", _COND, _SPARSE,  2,     True,  300,    50,    40),
    )
}
# fmt: on


def get_spec(name: str) -> ModelSpec:
    """Return the row of a model.

    Raises:
        UsageError: there is no such model.
    """
    try:
        return SPECS[name]
    except KeyError:
        raise UsageError(f"unknown model '{name}'", where="--model", hint=nearest(name, SPECS)) from None

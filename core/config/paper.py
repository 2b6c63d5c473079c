"""The presets that reproduce the paper: one for every published result, `paper/DATA/MODEL`.

A preset holds what its data set decides; what its model decides stands in the model's row
(`core.models.specs`), so that `--preset paper/coco/dela-detr --model de-detr` is `paper/coco/de-detr`. What is
not named in either is the default: ResNet-50 with ImageNet weights V1, AdamW with 1e-4 (backbone 1e-5), short
side 800.

Sources: ECCV 2022, "Towards Data-Efficient Detection Transformers", section 5, and the training commands of the
two reference repositories. They do not publish: seeds, and the schedule of the baselines on parts of COCO; these
have the 50 epochs of all other COCO results here.
"""

from __future__ import annotations

from typing import Any

PREFIX = "paper/"

_MODELS = ("conddetr", "de-conddetr", "de-detr", "dela-conddetr", "dela-detr", "detr")

# As in the reference: an image with more (repeated) labels than queries is learned from as far as it fits.
_COMMON: dict[str, dict[str, Any]] = {"data": {"allow_more_labels_than_queries": True}, "run": {"seed": 42}}
_COCO_SCHEDULE = {"epochs": 50, "lr_drop_epoch": 40}
"""Of every model on COCO, DETR too, whose own row has the 300 epochs of Cityscapes."""


def _coco_part(rate: str) -> dict[str, dict[str, Any]]:
    """Return the settings for a share of COCO's training images: 4 images on each of 2 GPUs, none repeated."""
    return {"data": {"subset": rate, "batch_size": 8, "sample_repeat": 1}, "schedule": _COCO_SCHEDULE}


_DATA: dict[str, dict[str, dict[str, Any]]] = {
    "cityscapes": {"data": {"batch_size": 8}},  # 4 images on each of 2 GPUs
    "coco": {"data": {"batch_size": 32}, "schedule": _COCO_SCHEDULE},  # 4 images on each of 8 GPUs
    "coco-1": _coco_part("0.01"),
    "coco-2": _coco_part("0.02"),
    "coco-5": _coco_part("0.05"),
    "coco-10": _coco_part("0.1"),
}


def paper_preset_names() -> list[str]:
    """Return `paper/DATA/MODEL` for every published result: six models on six data sets."""
    return [f"{PREFIX}{data}/{model}" for data in _DATA for model in _MODELS]


def paper_preset(name: str) -> dict[str, dict[str, Any]]:
    """Return the settings of one of `paper_preset_names`, by section and key."""
    data, model = name.removeprefix(PREFIX).split("/")
    settings: dict[str, dict[str, Any]] = {"model": {"name": model}}
    for part in (_COMMON, _DATA[data]):
        for section, values in part.items():
            settings[section] = {**settings.get(section, {}), **values}
    return settings

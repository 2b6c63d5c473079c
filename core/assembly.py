"""From a configuration and a list of classes to everything that a run is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from core.annotations.records import Category
from core.config.schema import Config
from core.datasets.seeds import derived_seed
from core.datasets.transforms import EvalTransform, TrainTransform
from core.errors import CheckpointError
from core.losses.criterion import Criterion
from core.models.backbone import build_backbone
from core.models.detector import Detector, build_detector, num_backbone_levels
from core.models.postprocess import Postprocess
from core.models.reference_keys import (
    reference_backbone_config,
    reference_classes,
    reference_family,
    reference_model_config,
    reference_num_classes,
)
from core.models.specs import ModelSpec, get_spec
from core.models.weights import LoadedWeights, load_into, read_weights


@dataclass(frozen=True)
class Assembly:
    """A model with all that trains it, reads its images and reads its answers.

    Attributes:
        classes: the position of a class here is its label in tensors.
    """

    config: Config
    spec: ModelSpec
    classes: tuple[Category, ...]
    model: Detector
    criterion: Criterion
    postprocess: Postprocess
    train_transform: TrainTransform
    eval_transform: EvalTransform


def assemble(
    config: Config, classes: Sequence[Category], *, load_backbone_weights: bool = True, download: bool = False
) -> Assembly:
    """Build all parts of a run; new weights follow from its seed alone.

    Args:
        config: the run's configuration.
        classes: at least one.
        load_backbone_weights: False leaves the backbone as initialised (its weights come from a checkpoint).
        download: fetch torchvision's weights if they are not on this machine.

    Raises:
        UsageError: unknown model or backbone, or switches that exclude each other.
        MachineError: pretrained weights or an optional package are not on this machine.
        CheckpointError: the backbone's weight file is damaged or does not fit.
    """
    spec = get_spec(config.model.name)
    backbone_config = config.backbone
    if not load_backbone_weights:
        backbone_config = backbone_config.model_copy(update={"weights": None})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("weights", config.run.seed))
        backbone = build_backbone(backbone_config, num_backbone_levels(config.model), download=download)
        model = build_detector(config.model, backbone, len(classes))
    model.require_side(config.data.max_long_side)
    return Assembly(
        config=config,
        spec=spec,
        classes=tuple(classes),
        model=model,
        criterion=Criterion(config.loss, config.label_augmentation, spec.family, len(classes)),
        postprocess=Postprocess(config.postprocess, spec.family),
        train_transform=TrainTransform(config.data, backbone.pixel_mean, backbone.pixel_std),
        eval_transform=EvalTransform(config.data, backbone.pixel_mean, backbone.pixel_std),
    )


@dataclass(frozen=True)
class LoadedDetector:
    """A detector as a checkpoint describes it, ready to look at images.

    Attributes:
        assembly: the detector and what belongs to it.
        path: the weight file.
        data_root: the data set it was trained on, as the run named it; None where the file does not say.
        is_reference: whether the reference implementation wrote the file; its class ids are the head's indices.
    """

    assembly: Assembly
    path: Path
    data_root: str | None
    is_reference: bool


def load_detector(
    path: Path, change: Callable[[Config], Config] | None = None, *, trust: bool = False
) -> LoadedDetector:
    """Build the detector that a weight file describes; the file decides on architecture and classes.

    Args:
        path: `model.pt` of a checkpoint, or a `.pth` of the reference implementation.
        change: applied to the file's configuration, for what may change after training, such as the image size.
        trust: unpickle the file even if that could run code.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or holds no detector.
    """
    weights = read_weights(path, trust=trust)
    config, classes = described_by(weights)
    assembly = assemble(change(config) if change else config, classes, load_backbone_weights=False)
    load_into(assembly.model, weights)
    data_root = None if weights.is_reference else assembly.config.data.root
    return LoadedDetector(assembly, path, data_root, weights.is_reference)


def described_by(weights: LoadedWeights) -> tuple[Config, tuple[Category, ...]]:
    """Return the configuration and the classes of the detector that a weight file holds.

    A reference file tells the model and the backbone; the rest is the model's row in the table of six.

    Raises:
        CheckpointError: the file holds weights alone, no model of ours, or a configuration of another time.
    """
    if weights.is_reference:
        model = reference_model_config(weights.reference_args, weights.state)
        backbone = reference_backbone_config(weights.reference_args)
        settings = get_spec(model.name).config_defaults()
        settings |= {"model": model.model_dump(), "backbone": backbone.model_dump()}
        num_classes = reference_num_classes(weights.state, reference_family(weights.state))
        return Config.model_validate(settings), reference_classes(num_classes)
    if weights.config is None or weights.classes is None:
        raise CheckpointError(
            "holds weights alone, neither their architecture nor their classes",
            where=str(weights.path),
            hint="name a checkpoint of a dedetr run, or a .pth of the reference",
        )
    try:
        return Config.model_validate(weights.config), weights.classes
    except ValidationError as error:
        fault = error.errors()[0]
        raise CheckpointError(
            f"its configuration cannot be used: {'.'.join(map(str, fault['loc']))}: {fault['msg']}",
            where=str(weights.path),
        ) from error

"""Checkpoints opened for work, and the data that they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.annotations.checks.split import read_checked_split
from core.annotations.prepared import open_dataset, require_same_classes
from core.annotations.records import AnnotationSet, Category, PreparedDataset
from core.api.common import LATEST, Say
from core.config.layers import assignments_layer, resolve_over
from core.config.schema import Config
from core.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch

    from core.assembly import LoadedDetector
    from core.datasets.dataset import DetectionDataset

# Fixed by a checkpoint, but for how it is computed.
_FIXED_SECTIONS = ("model", "backbone")
_IMPLEMENTATION_KEYS = ("model.attention", "model.roi_backend")


def open_checkpoint(
    checkpoint: Path | None, assignments: Sequence[str], device: str | None, trust: bool
) -> tuple[LoadedDetector, torch.device]:
    """Build the detector of a checkpoint on its device, in evaluation mode.

    Args:
        checkpoint: run folder, checkpoint folder or weight file; None for the latest run.
        assignments: `section.key=value`, for what may change after training.
        device: None for the best that there is.
        trust: unpickle the file even if that could run code.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
        UsageError: an assignment cannot be used, or changes what the checkpoint decides.
        MachineError: the device is absent.
    """
    if checkpoint is None and not LATEST.exists():
        raise CheckpointError("no run here yet", where=str(LATEST), hint="train first, or name one with --checkpoint")
    changes = assignments_layer(assignments)
    from core.assembly import load_detector
    from core.device import choose_device, place
    from core.trainer.checkpoint import find_model_file

    def change(config: Config) -> Config:
        return resolve_over(config, [changes], fixed=_FIXED_SECTIONS, changeable=_IMPLEMENTATION_KEYS)

    on = choose_device(device or "auto")
    loaded = load_detector(find_model_file(checkpoint or LATEST), change, trust=trust)
    place(loaded.assembly.model, on)
    loaded.assembly.model.eval()
    return loaded, on


def open_split(
    data: Path | None, split: str, loaded: LoadedDetector, on_note: Say, *, check_files: bool = True
) -> tuple[PreparedDataset, AnnotationSet, DetectionDataset]:
    """Open the split that a detector is to be compared with, and check that both mean the same classes.

    Args:
        data: the data set's folder; None for the one that the detector was trained on.
        split: its name.
        loaded: the detector.
        on_note: is told what is unusual about the annotations.
        check_files: whether to look at the images' headers: of several processes one does.

    Raises:
        UsageError: no data set is named, neither here nor in the checkpoint.
        DataError: there is no such data set or split, it or one of its images has a fault, or it has other classes than
            the checkpoint.
    """
    from core.datasets.dataset import DetectionDataset
    from core.models.reference_keys import reference_class_names

    if data is None and loaded.data_root is None:
        raise UsageError("the checkpoint does not say what it was trained on", where="--data", hint="name the data set")
    dataset = open_dataset(data or Path(str(loaded.data_root)))
    drop_invalid = loaded.assembly.config.data.on_invalid == "drop"
    annotations = read_checked_split(
        dataset, split, drop_invalid=drop_invalid, check_files=check_files, on_note=on_note
    )
    classes = loaded.assembly.classes
    if loaded.is_reference:
        # Its head has a row for every id up to the largest; without names there is nothing more to compare.
        on_note("a checkpoint of the reference: category ids of the data are taken as rows of its head")
        names = reference_class_names(len(classes))
        known = [Category(category.id, names.get(category.id, category.name)) for category in dataset.classes]
        require_same_classes(known, dataset.classes, str(loaded.path), str(dataset.root))
    else:
        require_same_classes(classes, dataset.classes, str(loaded.path), str(dataset.root))
    images = DetectionDataset(
        annotations,
        dataset.splits[split].image_root,
        classes,
        loaded.assembly.eval_transform,
        seed=0,
        drop_crowds=False,
    )
    return dataset, annotations, images

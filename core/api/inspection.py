"""Checkpoints at work: scored, applied to images, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.api.common import LATEST, OnImages, Say, count_nothing, say_nothing
from core.config.layers import assignments_layer, resolve_over
from core.config.schema import Config
from core.errors import CheckpointError, DataError, UsageError
from core.files import join_within

if TYPE_CHECKING:
    import torch

    from core.annotations.records import AnnotationSet
    from core.assembly import LoadedDetector
    from core.datasets.dataset import DetectionDataset
    from core.evaluation.coco import EvaluationResult


# Fixed by a checkpoint, but for how it is computed.
_FIXED_SECTIONS = ("model", "backbone")
_IMPLEMENTATION_KEYS = ("model.attention", "model.roi_backend")


def _load(
    checkpoint: Path | None, assignments: Sequence[str], device: str | None, trust: bool
) -> tuple[LoadedDetector, torch.device]:
    """Build the detector of a checkpoint on its device, in evaluation mode."""
    if checkpoint is None and not LATEST.exists():
        raise CheckpointError("no run here yet", where=str(LATEST), hint="train first, or name one with --checkpoint")
    from core.assembly import load_detector
    from core.device import choose_device
    from core.trainer.checkpoint import find_model_file
    from core.trainer.device import place

    changes = assignments_layer(assignments)

    def change(config: Config) -> Config:
        return resolve_over(config, [changes], fixed=_FIXED_SECTIONS, changeable=_IMPLEMENTATION_KEYS)

    loaded = load_detector(find_model_file(checkpoint or LATEST), change, trust=trust)
    on = choose_device(device or loaded.assembly.config.run.device)
    place(loaded.assembly.model, on)
    loaded.assembly.model.eval()
    return loaded, on


def _open_split(
    data: Path | None, split: str, loaded: LoadedDetector, on_note: Say
) -> tuple[Path, AnnotationSet, DetectionDataset]:
    """Open the split that a detector is to be compared with, and check that both mean the same classes."""
    from core.annotations.prepared import open_dataset, read_split, require_same_classes
    from core.datasets.dataset import DetectionDataset

    if data is None and loaded.data_root is None:
        raise UsageError("the checkpoint does not say what it was trained on", where="--data", hint="name the data set")
    root = data or Path(str(loaded.data_root))
    prepared = open_dataset(root)
    annotations, findings = read_split(prepared, split)
    for note in findings.notes():
        on_note(f"{split}: {note}")
    classes = loaded.assembly.classes
    if not loaded.is_reference:
        require_same_classes(classes, prepared.classes, str(loaded.path), str(root))
    # A reference head has a row for every id up to its largest; DetectionDataset refuses ids that it lacks.
    dataset = DetectionDataset(
        annotations,
        prepared.splits[split].image_root,
        classes,
        loaded.assembly.eval_transform,
        seed=0,
        drop_crowds=False,
    )
    return root, annotations, dataset


@dataclass(frozen=True)
class EvaluationOutcome:
    """How good a checkpoint is.

    Attributes:
        checkpoint: the weight file.
        data: the data set.
        split: which part of it.
        result: the numbers.
    """

    checkpoint: Path
    data: Path
    split: str
    result: EvaluationResult


def evaluate(
    checkpoint: Path | None = None,
    *,
    data: Path | None = None,
    split: str = "val",
    assignments: Sequence[str] = (),
    device: str | None = None,
    trust: bool = False,
    on_images: OnImages = count_nothing,
    on_note: Say = say_nothing,
) -> EvaluationOutcome:
    """Score a checkpoint on a split; the numbers are also written into `eval/` of its run folder.

    Args:
        checkpoint: run folder, checkpoint folder or weight file; None for the latest run.
        data: the data set; None for the one it was trained on.
        split: train, val or test.
        assignments: `section.key=value`, for what may change after training.
        device: None for that of the configuration.
        trust: unpickle the file even if that could run code.
        on_images: is told how many of how many images are done.
        on_note: is told what was evaluated.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
        DataError: there is no such data set or split, it has a fault, or other classes than the checkpoint.
    """
    from core.datasets.batches import EvalLoader
    from core.evaluation.coco import CocoEvaluator
    from core.evaluation.run import evaluate as score
    from core.evaluation.run import write_result
    from core.trainer.run_folder import run_folder_of

    loaded, on = _load(checkpoint, assignments, device, trust)
    root, annotations, dataset = _open_split(data, split, loaded, on_note)
    on_note(f"evaluating {loaded.path} on {split} of {root}")
    result = score(
        loaded.assembly.model,
        loaded.assembly.postprocess,
        EvalLoader(dataset, loaded.assembly.config.data, pin_memory=on.type == "cuda"),
        CocoEvaluator(annotations, loaded.assembly.classes),
        on,
        lambda done: on_images(done, len(dataset)),
    )
    run = run_folder_of(loaded.path)
    if run is not None:
        write_result(run / "eval" / f"{split}.json", result)
    return EvaluationOutcome(loaded.path, root, split, result)


@dataclass(frozen=True)
class PredictionOutcome:
    """What was found in images.

    Attributes:
        checkpoint: the weight file.
        out: the folder with pictures, `predictions.json` and `predictions.csv`.
        num_images: images that were read.
        num_detections: detections in all of them.
        pictures: annotated pictures.
        unreadable: one sentence for each file that could not be read.
    """

    checkpoint: Path
    out: Path
    num_images: int
    num_detections: int
    pictures: tuple[Path, ...]
    unreadable: tuple[str, ...]


def predict(
    inputs: Sequence[str | Path],
    *,
    out: Path = Path("predictions"),
    checkpoint: Path | None = None,
    threshold: float = 0.3,
    nms: bool | None = None,
    nms_iou: float | None = None,
    batch_size: int = 1,
    pictures: bool = True,
    assignments: Sequence[str] = (),
    device: str | None = None,
    trust: bool = False,
    on_images: OnImages = count_nothing,
    on_note: Say = say_nothing,
) -> PredictionOutcome:
    """Detect objects in image files, and write annotated pictures, `predictions.json` and `predictions.csv`.

    Args:
        inputs: image files, folders of them, or glob patterns.
        out: the folder to write.
        checkpoint: run folder, checkpoint folder or weight file; None for the latest run.
        threshold: the least score that is kept, in [0, 1].
        nms: whether to suppress overlapping detections; None as trained.
        nms_iou: the overlap that suppresses; None as trained.
        batch_size: images at a time.
        pictures: whether to draw.
        assignments: `section.key=value`, for what may change after training.
        device: None for that of the configuration.
        trust: unpickle the file even if that could run code.
        on_images: is told how many of how many images are done.
        on_note: is told what was used.

    Raises:
        DataError: an input names no image.
        CheckpointError: there is no such checkpoint, or it cannot be read.
        MachineError: `out` cannot be written.
    """
    from core.prediction import collect_images, predict_images, write_predictions_csv, write_predictions_json
    from core.visualization.pictures import draw_prediction, picture_paths

    switches = {"postprocess.nms": nms, "postprocess.nms_iou": nms_iou}
    extra = [f"{key}={value}" for key, value in switches.items() if value is not None]
    loaded, on = _load(checkpoint, [*assignments, *extra], device, trust)
    paths = collect_images(inputs)
    on_note(f"predicting {len(paths)} images with {loaded.path}")
    predictions = []
    drawn: list[Path] = []
    targets = picture_paths(out, paths)
    names = [category.name for category in loaded.assembly.classes]
    found = predict_images(
        loaded.assembly.model,
        loaded.assembly.postprocess,
        loaded.assembly.eval_transform,
        paths,
        on,
        batch_size=batch_size,
        threshold=threshold,
    )
    for prediction, target in zip(found, targets, strict=True):
        predictions.append(prediction)
        if pictures and prediction.detections is not None:
            draw_prediction(prediction.path, prediction.detections, names, target)
            drawn.append(target)
        on_images(len(predictions), len(paths))
    write_predictions_json(out / "predictions.json", predictions, loaded.assembly.classes)
    write_predictions_csv(out / "predictions.csv", predictions, loaded.assembly.classes)
    readable = [prediction.detections for prediction in predictions if prediction.detections is not None]
    return PredictionOutcome(
        checkpoint=loaded.path,
        out=out,
        num_images=len(readable),
        num_detections=sum(len(detections) for detections in readable),
        pictures=tuple(drawn),
        unreadable=tuple(str(prediction.error) for prediction in predictions if prediction.error is not None),
    )


@dataclass(frozen=True)
class VisualizationOutcome:
    """Pictures of a run.

    Attributes:
        checkpoint: the weight file.
        pictures: what was written.
    """

    checkpoint: Path
    pictures: tuple[Path, ...]


def visualize(
    checkpoint: Path | None = None,
    *,
    out: Path | None = None,
    data: Path | None = None,
    split: str = "val",
    num_images: int = 8,
    threshold: float = 0.3,
    assignments: Sequence[str] = (),
    device: str | None = None,
    trust: bool = False,
    on_note: Say = say_nothing,
) -> VisualizationOutcome:
    """Draw ground truth beside predictions, and the training curves of the checkpoint's run.

    Args:
        checkpoint: run folder, checkpoint folder or weight file; None for the latest run.
        out: the folder to write; None for `plots` of the run, or `plots` here.
        data: the data set; None for the one it was trained on.
        split: train, val or test.
        num_images: how many images of the split, evenly taken.
        threshold: the least score that is drawn.
        assignments: `section.key=value`, for what may change after training.
        device: None for that of the configuration.
        trust: unpickle the file even if that could run code.
        on_note: is told what was drawn.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
        DataError: there is no such data set or split, it has a fault, or other classes than the checkpoint.
        MachineError: `out` cannot be written.
    """
    from core.prediction import predict_images
    from core.trainer.records import read_records
    from core.trainer.run_folder import run_folder_of
    from core.visualization.curves import plot_training_curves
    from core.visualization.pictures import draw_comparison, picture_paths

    loaded, on = _load(checkpoint, assignments, device, trust)
    run = run_folder_of(loaded.path)
    folder = out or (run or Path()) / "plots"
    drawn: list[Path] = []
    if run is not None and (run / "metrics.jsonl").is_file():
        drawn.append(folder / "curves.png")
        plot_training_curves(read_records(run / "metrics.jsonl"), drawn[-1])
    root, annotations, dataset = _open_split(data, split, loaded, on_note)
    on_note(f"drawing {loaded.path} on {split} of {root}")
    stride = max(1, len(dataset) // max(1, num_images))
    indices = range(0, len(dataset), stride)[:num_images]
    paths = [join_within(dataset.image_root, annotations.images[index].file_name) for index in indices]
    names = [category.name for category in loaded.assembly.classes]
    found = predict_images(
        loaded.assembly.model,
        loaded.assembly.postprocess,
        loaded.assembly.eval_transform,
        paths,
        on,
        threshold=threshold,
    )
    for index, prediction, target in zip(indices, found, picture_paths(folder, paths), strict=True):
        if prediction.detections is None:
            raise prediction.error or DataError("cannot be read", where=str(prediction.path))
        boxes_xyxy_px, labels = dataset.annotated(index)
        draw_comparison(prediction.path, boxes_xyxy_px, labels, prediction.detections, names, target)
        drawn.append(target)
    return VisualizationOutcome(loaded.path, tuple(drawn))

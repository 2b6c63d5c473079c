"""Checkpoints at work: scored, applied to images, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.api.checkpoints import open_checkpoint, open_split
from core.api.common import OnImages, Say, count_nothing, say_nothing
from core.errors import DataError, MachineError, UsageError
from core.files import join_within, require_writable_folder, write_json

if TYPE_CHECKING:
    from core.evaluation.coco import EvaluationResult
    from core.prediction import ImagePrediction

JSON_NAME = "predictions.json"
CSV_NAME = "predictions.csv"


@dataclass(frozen=True)
class EvaluationOutcome:
    """How good a checkpoint is.

    Attributes:
        checkpoint: the weight file.
        data: the data set.
        split: which part of it.
        evaluation: the numbers.
    """

    checkpoint: Path
    data: Path
    split: str
    evaluation: EvaluationResult


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
    """Score a checkpoint on a split.

    Where nothing differs from the run, the numbers are also written into `eval/` of its folder.

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
    from core.trainer.failures import out_of_memory_errors
    from core.trainer.run_folder import run_folder_of

    loaded, on = open_checkpoint(checkpoint, assignments, device, trust)
    dataset, annotations, images = open_split(data, split, loaded, on_note)
    on_note(f"evaluating {loaded.path} on {split} of {dataset.root}")
    with out_of_memory_errors(loaded.assembly.config.data):
        result = score(
            loaded.assembly.model,
            loaded.assembly.postprocess,
            EvalLoader(images, loaded.assembly.config.data, pin_memory=on.type == "cuda"),
            CocoEvaluator(annotations, loaded.assembly.classes),
            on,
            lambda done: on_images(done, len(images)),
        )
    outcome = EvaluationOutcome(loaded.path, dataset.root, split, result)
    run = run_folder_of(loaded.path)
    # What was scored otherwise than the run itself does must not pass for the run's own number.
    if run is not None and data is None and not assignments:
        try:
            write_json(run / "eval" / f"{split}.json", asdict(outcome))
        except MachineError as error:
            on_note(f"the numbers were not kept: {error}")
    return outcome


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
    threshold: float = 0.5,
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
    from core.trainer.failures import out_of_memory_errors
    from core.visualization.pictures import draw_prediction, picture_paths

    paths = collect_images(inputs)
    targets = picture_paths(out, paths)
    _refuse_to_replace(out, paths, targets if pictures else [])
    switches = {"postprocess.nms": nms, "postprocess.nms_iou": nms_iou}
    extra = [f"{key}={value}" for key, value in switches.items() if value is not None]
    loaded, on = open_checkpoint(checkpoint, [*assignments, *extra], device, trust)
    on_note(f"predicting {len(paths)} images with {loaded.path}")
    predictions: list[ImagePrediction] = []
    drawn: list[Path] = []
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
    with out_of_memory_errors(loaded.assembly.config.data):
        for prediction, target in zip(found, targets, strict=True):
            predictions.append(prediction)
            if pictures and prediction.detections is not None:
                draw_prediction(prediction.path, prediction.detections, names, target)
                drawn.append(target)
            on_images(len(predictions), len(paths))
    write_predictions_json(out / JSON_NAME, predictions, loaded.assembly.classes)
    write_predictions_csv(out / CSV_NAME, predictions, loaded.assembly.classes)
    readable = [prediction.detections for prediction in predictions if prediction.detections is not None]
    return PredictionOutcome(
        checkpoint=loaded.path,
        out=out,
        num_images=len(readable),
        num_detections=sum(len(detections) for detections in readable),
        pictures=tuple(drawn),
        unreadable=tuple(str(prediction.error) for prediction in predictions if prediction.error is not None),
    )


def _keep_originals(out: Path, images: Sequence[Path], pictures: Sequence[Path]) -> None:
    """Check that a folder can be written, and that no picture in it would replace one of the images.

    Raises:
        UsageError: a picture would.
        MachineError: the folder cannot be written.
    """
    require_writable_folder(out)
    originals = {image.resolve() for image in images}
    if any(picture.resolve() in originals for picture in pictures):
        raise UsageError("the pictures would replace the images themselves", where="--out", hint="name another folder")


def _refuse_to_replace(out: Path, images: Sequence[Path], pictures: Sequence[Path]) -> None:
    """Check that writing to a folder replaces nothing but what an earlier prediction wrote there.

    Raises:
        UsageError: a picture would replace one of the images, or the folder holds other things.
        MachineError: the folder cannot be written.
    """
    _keep_originals(out, images, pictures)
    is_ours = all((out / name).is_file() for name in (JSON_NAME, CSV_NAME))
    if not is_ours and out.is_dir() and any(out.iterdir()):
        raise UsageError(
            "the folder holds other files, and dedetr replaces only predictions of its own",
            where=str(out),
            hint="name another folder with --out",
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
    threshold: float = 0.5,
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

    loaded, on = open_checkpoint(checkpoint, assignments, device, trust)
    run = run_folder_of(loaded.path)
    folder = out or (run or Path()) / "plots"
    dataset, annotations, images = open_split(data, split, loaded, on_note)
    num_drawn = min(num_images, len(images))
    indices = [position * len(images) // num_drawn for position in range(num_drawn)]
    paths = [join_within(images.image_root, annotations.images[index].file_name) for index in indices]
    targets = picture_paths(folder, paths)
    _keep_originals(folder, paths, targets)
    on_note(f"drawing {loaded.path} on {split} of {dataset.root}")
    drawn: list[Path] = []
    if run is not None and (run / "metrics.jsonl").is_file():
        drawn.append(folder / "curves.png")
        plot_training_curves(read_records(run / "metrics.jsonl"), drawn[-1])
    names = [category.name for category in loaded.assembly.classes]
    found = predict_images(
        loaded.assembly.model,
        loaded.assembly.postprocess,
        loaded.assembly.eval_transform,
        paths,
        on,
        batch_size=1,
        threshold=threshold,
    )
    for index, prediction, target in zip(indices, found, targets, strict=True):
        if prediction.detections is None:
            raise prediction.error or DataError("cannot be read", where=str(prediction.path))
        boxes_xyxy_px, labels = images.annotated(index)
        draw_comparison(prediction.path, boxes_xyxy_px, labels, prediction.detections, names, target)
        drawn.append(target)
    return VisualizationOutcome(loaded.path, tuple(drawn))

"""A checkpoint, applied to image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.api.checkpoints import open_checkpoint
from core.api.common import OnImages, Say, count_nothing, keep_originals, say_nothing
from core.errors import UsageError

if TYPE_CHECKING:
    from core.prediction import ImagePrediction

JSON_NAME = "predictions.json"
CSV_NAME = "predictions.csv"


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


def _refuse_to_replace(out: Path, images: Sequence[Path], pictures: Sequence[Path]) -> None:
    """Check that writing to a folder replaces nothing but what an earlier prediction wrote there.

    Raises:
        UsageError: a picture would replace one of the images, or the folder holds other things.
        MachineError: the folder cannot be written.
    """
    keep_originals(out, images, pictures)
    is_ours = all((out / name).is_file() for name in (JSON_NAME, CSV_NAME))
    if not is_ours and out.is_dir() and any(out.iterdir()):
        raise UsageError(
            "the folder holds other files, and dedetr replaces only predictions of its own",
            where=str(out),
            hint="name another folder with --out",
        )

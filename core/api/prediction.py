"""A checkpoint, applied to image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from core.api.checkpoints import open_checkpoint
from core.api.common import OnImages, Say, count_nothing, keep_originals, say_nothing
from core.api.detector import labels_of, nms_assignments
from core.files import write_atomic

if TYPE_CHECKING:
    from core.annotations.records import Category
    from core.prediction.detect import ImagePrediction
    from core.prediction.folder import PredictionFolder

JSON_NAME = "predictions.json"
CSV_NAME = "predictions.csv"
LABELS_NAME = "labels"
CROPS_NAME = "crops"


@dataclass(frozen=True)
class PredictionOutcome:
    """What was found in images.

    Attributes:
        checkpoint: the weight file.
        out: the folder with pictures, `predictions.json` and `predictions.csv`.
        num_images: images that were read.
        num_detections: detections in all of them.
        pictures: annotated pictures.
        labels: YOLO label files, without the list of classes beside them.
        crops: pictures of single detections.
        unreadable: one sentence for each file that could not be read.
    """

    checkpoint: Path
    out: Path
    num_images: int
    num_detections: int
    pictures: tuple[Path, ...]
    labels: tuple[Path, ...]
    crops: tuple[Path, ...]
    unreadable: tuple[str, ...]


def predict(
    inputs: Sequence[str | Path],
    *,
    out: Path = Path("predictions"),
    checkpoint: Path | None = None,
    threshold: float = 0.5,
    classes: Sequence[str] | None = None,
    nms: bool | None = None,
    nms_iou: float | None = None,
    batch_size: int = 1,
    pictures: bool = True,
    yolo: bool = False,
    crops: bool = False,
    assignments: Sequence[str] = (),
    device: str | None = None,
    trust: bool = False,
    on_images: OnImages = count_nothing,
    on_note: Say = say_nothing,
) -> PredictionOutcome:
    """Detect objects in image files, and write annotated pictures, `predictions.json` and `predictions.csv`.

    What an earlier prediction wrote into `out` is replaced, and removed where it is not written again.

    Args:
        inputs: image files, folders of them, or glob patterns.
        out: the folder to write.
        checkpoint: run folder, checkpoint folder or weight file; None for the latest run.
        threshold: the least score that is kept, in [0, 1].
        classes: keep only detections of these names; None keeps all.
        nms: whether to suppress overlapping detections; None as trained.
        nms_iou: the overlap that suppresses; None as trained.
        batch_size: images at a time; changes the speed alone.
        pictures: whether to draw.
        yolo: write `labels/NAME.txt` for each image, and `labels/classes.txt`; see `write_yolo_labels`.
        crops: write `crops/CLASS/NAME-1.jpg`, ... for the detections of each image.
        assignments: `section.key=value`, for what may change after training.
        device: None for the best that there is.
        trust: unpickle the file even if that could run code.
        on_images: is told how many of how many images are done.
        on_note: is told what was used.

    Raises:
        DataError: an input names no image.
        UsageError: a class is unknown, or files would be replaced that no prediction wrote.
        CheckpointError: there is no such checkpoint, or it cannot be read.
        MachineError: `out` cannot be written.
    """
    from core.prediction.inputs import collect_images

    paths = collect_images(inputs)  # a wrong name is told before PyTorch is loaded
    from core.prediction.detect import predict_images
    from core.prediction.folder import PredictionFolder
    from core.trainer.failures import out_of_memory_errors

    plan = _plan(out, paths, pictures=pictures, yolo=yolo)
    folder = PredictionFolder(out)
    keep_originals(out, paths, [*plan.files, *folder.earlier])
    folder.check(plan.files, [out / CROPS_NAME] if crops else [])
    loaded, on = open_checkpoint(checkpoint, [*assignments, *nms_assignments(nms, nms_iou)], device, trust)
    assembly = loaded.assembly
    labels = None if classes is None else labels_of(classes, assembly.classes)
    on_note(f"predicting {len(paths)} images with {loaded.path}")
    folder.claim(plan.files)
    found = predict_images(
        assembly.model,
        assembly.postprocess,
        assembly.eval_transform,
        paths,
        on,
        batch_size=batch_size,
        threshold=threshold,
        labels=labels,
    )
    predictions: list[ImagePrediction] = []
    names = [category.name for category in assembly.classes]
    with out_of_memory_errors(assembly.config.data.model_copy(update={"batch_size": batch_size})):
        for prediction in _drawn(found, plan.pictures, names):
            predictions.append(prediction)
            on_images(len(predictions), len(paths))
    crop_files = _write_crops(folder, predictions, names) if crops else []
    _write_labels_and_tables(plan, predictions, assembly.classes)
    is_read = [prediction.detections is not None for prediction in predictions]
    picture_files, label_files = tuple(compress(plan.pictures, is_read)), tuple(compress(plan.labels, is_read))
    folder.finish([*plan.tables, *picture_files, *label_files, *plan.class_list, *crop_files])
    return PredictionOutcome(
        checkpoint=loaded.path,
        out=out,
        num_images=sum(is_read),
        num_detections=sum(len(each.detections) for each in predictions if each.detections is not None),
        pictures=picture_files,
        labels=label_files,
        crops=tuple(crop_files),
        unreadable=tuple(str(prediction.error) for prediction in predictions if prediction.error is not None),
    )


@dataclass(frozen=True)
class _Plan:
    """The files that a prediction writes, but for crops; those of images in their order, none where not wanted."""

    tables: tuple[Path, Path]
    pictures: Sequence[Path]
    labels: Sequence[Path]
    class_list: Sequence[Path]

    @property
    def files(self) -> list[Path]:
        return [*self.tables, *self.pictures, *self.labels, *self.class_list]


def _plan(out: Path, images: Sequence[Path], *, pictures: bool, yolo: bool) -> _Plan:
    from core.prediction.outputs import label_paths
    from core.visualization.pictures import picture_paths

    class_list, labels = label_paths(out / LABELS_NAME, images)
    return _Plan(
        tables=(out / JSON_NAME, out / CSV_NAME),
        pictures=picture_paths(out, images) if pictures else (),
        labels=labels if yolo else (),
        class_list=(class_list,) if yolo else (),
    )


def _drawn(
    predictions: Iterable[ImagePrediction], pictures: Sequence[Path], class_names: Sequence[str]
) -> Iterator[ImagePrediction]:
    """Pass predictions on, each with its picture drawn, if pictures are wanted."""
    from core.visualization.pictures import draw_prediction

    for prediction, picture in zip_longest(predictions, pictures):
        if picture is not None and prediction.detections is not None:
            draw_prediction(prediction.path, prediction.detections, class_names, picture)
        yield prediction


def _write_crops(
    folder: PredictionFolder, predictions: Sequence[ImagePrediction], class_names: Sequence[str]
) -> list[Path]:
    from core.visualization.crops import crop_paths, write_crops

    images = [prediction.path for prediction in predictions]
    detections = [prediction.detections for prediction in predictions]
    files = crop_paths(folder.root / CROPS_NAME, images, detections, class_names)
    folder.claim(path for of_image in files for path in of_image)
    for prediction, of_image in zip(predictions, files, strict=True):
        if prediction.detections is not None and of_image:
            write_crops(prediction.path, prediction.detections, of_image)
    return [path for of_image in files for path in of_image]


def _write_labels_and_tables(plan: _Plan, predictions: Sequence[ImagePrediction], classes: Sequence[Category]) -> None:
    from core.prediction.outputs import write_predictions_csv, write_predictions_json, write_yolo_labels

    for path in plan.class_list:
        write_atomic(path, "".join(" ".join(category.name.splitlines()) + "\n" for category in classes))
    for prediction, path in zip(predictions, plan.labels, strict=False):
        if prediction.detections is not None:
            write_yolo_labels(path, prediction)
    json_file, csv_file = plan.tables
    write_predictions_json(json_file, predictions, classes)
    write_predictions_csv(csv_file, predictions, classes)

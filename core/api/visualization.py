"""A run and its checkpoint, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.api.checkpoints import open_checkpoint, open_split
from core.api.common import Say, keep_originals, say_nothing
from core.errors import DataError
from core.files import join_within


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
    keep_originals(folder, paths, targets)
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

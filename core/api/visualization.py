"""A run and its checkpoint, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from core.api.checkpoints import open_checkpoint, open_split
from core.api.common import OnImages, Say, count_nothing, keep_originals, say_nothing
from core.errors import DataError, UsageError, nearest
from core.files import join_within, unique_names

if TYPE_CHECKING:
    import torch

    from core.assembly import LoadedDetector
    from core.datasets.dataset import DetectionDataset

MODES = ("compare", "curves", "matches", "attention")
DEFAULT_MODES = ("compare", "curves")
ALL_MODES = "all"
CURVES_STEM = "curves"


@dataclass(frozen=True)
class VisualizationOutcome:
    """Pictures of a run.

    Attributes:
        checkpoint: the weight file.
        by_mode: what was written, by what it shows.
    """

    checkpoint: Path
    by_mode: dict[str, tuple[Path, ...]]

    @property
    def pictures(self) -> tuple[Path, ...]:
        """All that was written."""
        return tuple(path for paths in self.by_mode.values() for path in paths)


def visualize(
    checkpoint: Path | None = None,
    *,
    modes: Sequence[str] | None = None,
    out: Path | None = None,
    data: Path | None = None,
    split: str = "val",
    num_images: int = 8,
    threshold: float = 0.5,
    num_queries_shown: int = 3,
    assignments: Sequence[str] = (),
    device: str | None = None,
    trust: bool = False,
    on_images: OnImages = count_nothing,
    on_note: Say = say_nothing,
) -> VisualizationOutcome:
    """Draw what a checkpoint does with images of a split, and how its run went.

    Args:
        checkpoint: run folder, checkpoint folder or weight file; None for the latest run.
        modes: of `MODES`, or `all`; None for `DEFAULT_MODES`. compare: ground truth beside predictions. curves: loss,
            AP and learning rate of the run. matches: which queries learn from which label, repeated as in training.
            attention: where queries look, decoder layer by decoder layer.
        out: the folder to write; None for `plots` of the run, or `plots` here.
        data: the data set; None for the one it was trained on.
        split: train, val or test.
        num_images: how many images of the split, evenly taken.
        threshold: compare: the least score that is drawn.
        num_queries_shown: attention: how many queries of each image, the surest first.
        assignments: `section.key=value`, for what may change after training.
        device: None for the best that there is.
        trust: unpickle the file even if that could run code.
        on_images: is told how many of how many images are done.
        on_note: is told what was drawn, and what could not be.

    Raises:
        UsageError: there is no such mode, or curves alone are wanted of a checkpoint without a run.
        CheckpointError: there is no such checkpoint, or it cannot be read.
        DataError: there is no such data set or split, it has a fault, or other classes than the checkpoint.
        DivergedError: matches, attention: the detector answers with numbers that are not finite.
        MachineError: `out` cannot be written.
    """
    from core.trainer.failures import out_of_memory_errors
    from core.trainer.records import read_records
    from core.trainer.run_folder import run_folder_of
    from core.visualization.curves import plot_training_curves

    wanted = _wanted_modes(DEFAULT_MODES if modes is None else modes)
    loaded, on = open_checkpoint(checkpoint, assignments, device, trust)
    run = run_folder_of(loaded.path)
    folder = out or (run or Path()) / "plots"
    records = None if run is None else run / "metrics.jsonl"
    if "curves" in wanted and (records is None or not records.is_file()):
        wanted = _without_curves(wanted, loaded.path, on_note)
        records = None
    scenes: list[_Scene] = []
    if wanted != ["curves"]:
        scenes = _open_scenes(data, split, num_images, loaded, on_note)
    targets = _name_pictures(folder, [scene.path for scene in scenes])
    pictures = [target for mode in wanted for target in targets[mode]]
    keep_originals(folder, _images_named_like(pictures, scenes), pictures)
    if "curves" in wanted and records is not None:
        plot_training_curves(read_records(records), targets["curves"][0])
    with out_of_memory_errors(loaded.assembly.config.data):
        for position, scene in enumerate(scenes):
            files = {mode: targets[mode][position] for mode in wanted if mode != "curves"}
            if "compare" in files:
                _compare(scene, loaded, on, threshold, files["compare"])
            if "matches" in files or "attention" in files:
                _draw_queries(scene, loaded, on, num_queries_shown, files.get("matches"), files.get("attention"))
            on_images(position + 1, len(scenes))
    return VisualizationOutcome(loaded.path, {mode: tuple(targets[mode]) for mode in wanted})


def _wanted_modes(modes: Sequence[str]) -> list[str]:
    """Return the modes that are named, each once and in the order of `MODES`.

    Raises:
        UsageError: there is no such mode, or none is named.
    """
    for mode in modes:
        if mode not in (*MODES, ALL_MODES):
            raise UsageError(f"unknown mode '{mode}'", where="--mode", hint=nearest(mode, (*MODES, ALL_MODES)))
    if not modes:
        raise UsageError("no mode is named", where="--mode", hint=f"known: {', '.join((*MODES, ALL_MODES))}")
    return [mode for mode in MODES if mode in modes or ALL_MODES in modes]


def _without_curves(wanted: list[str], checkpoint: Path, on_note: Say) -> list[str]:
    """Return the modes but curves, of which a checkpoint outside a run has none; say so.

    Raises:
        UsageError: nothing else is wanted.
    """
    if wanted == ["curves"]:
        raise UsageError(
            "no run: no curves, as there is no metrics.jsonl",
            where=str(checkpoint),
            hint="name a run folder with --checkpoint",
        )
    on_note(f"no run: no curves, as there is no metrics.jsonl for {checkpoint}")
    return [mode for mode in wanted if mode != "curves"]


def _name_pictures(folder: Path, images: Sequence[Path]) -> dict[str, list[Path]]:
    """Return where the pictures of each mode go; a name is the same whichever modes are wanted."""
    from core.visualization.pictures import picture_suffix

    compare = [image.stem for image in images]
    matches, attention = ([f"{stem}-{mode}" for stem in compare] for mode in ("matches", "attention"))
    curves, *names = unique_names([CURVES_STEM, *compare, *matches, *attention])
    suffixes = [picture_suffix(image) for image in images] + [".png"] * (len(matches) + len(attention))
    paths = [folder / f"{name}{suffix}" for name, suffix in zip(names, suffixes, strict=True)]
    count = len(images)
    return {
        "compare": paths[:count],
        "curves": [folder / f"{curves}.png"],
        "matches": paths[count : 2 * count],
        "attention": paths[2 * count :],
    }


@dataclass(frozen=True)
class _Scene:
    """An image to draw.

    Attributes:
        path: its file.
        index: its place in the two data sets.
        annotated: with all boxes of the annotation file.
        trained_on: with the boxes that training sees.
    """

    path: Path
    index: int
    annotated: DetectionDataset
    trained_on: DetectionDataset


def _open_scenes(data: Path | None, split: str, num_images: int, loaded: LoadedDetector, on_note: Say) -> list[_Scene]:
    """Return images of a split, evenly taken; see `open_split`."""
    from core.datasets.dataset import DetectionDataset

    dataset, annotations, images = open_split(data, split, loaded, on_note)
    on_note(f"drawing {loaded.path} on {split} of {dataset.root}")
    trained_on = DetectionDataset(
        annotations, images.image_root, images.classes, images.transform, seed=images.seed, drop_crowds=True
    )
    indices = images.taken_evenly(num_images)
    return [
        _Scene(join_within(images.image_root, images.images[index].file_name), index, images, trained_on)
        for index in indices
    ]


def _images_named_like(pictures: Sequence[Path], scenes: Sequence[_Scene]) -> list[Path]:
    """Return the images of the split, drawn or not, that pictures in their folder would replace."""
    if not scenes:
        return []
    names, images = {picture.name for picture in pictures}, scenes[0].annotated
    file_names = [record.file_name for record in images.images]
    return [join_within(images.image_root, name) for name in file_names if PurePosixPath(name).name in names]


def _compare(scene: _Scene, loaded: LoadedDetector, on: torch.device, threshold: float, out: Path) -> None:
    from core.prediction.detect import predict_images
    from core.visualization.pictures import draw_comparison

    parts = loaded.assembly
    (found,) = predict_images(
        parts.model, parts.postprocess, parts.eval_transform, [scene.path], on, batch_size=1, threshold=threshold
    )
    if found.detections is None:
        raise found.error or DataError("cannot be read", where=str(found.path))
    boxes_xyxy_px, labels = scene.annotated.annotated(scene.index)
    names = [category.name for category in parts.classes]
    draw_comparison(scene.path, boxes_xyxy_px, labels, found.detections, names, out)


def _draw_queries(
    scene: _Scene,
    loaded: LoadedDetector,
    on: torch.device,
    num_queries_shown: int,
    matches: Path | None,
    attention: Path | None,
) -> None:
    from core.annotations.images import open_image
    from core.visualization.queries import draw_queries

    record = scene.trained_on.images[scene.index]
    draw_queries(
        loaded.assembly,
        on,
        open_image(scene.path, (record.width, record.height)),
        scene.trained_on[0, scene.index],
        matches=matches,
        attention=attention,
        num_queries_shown=num_queries_shown,
    )

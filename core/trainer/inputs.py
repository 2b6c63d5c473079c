"""What a run is trained and evaluated on: read, and checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.annotations.checks.split import read_checked_split
from core.annotations.prepared import open_dataset
from core.annotations.records import AnnotationSet, Category, PreparedDataset
from core.annotations.subsets import describe_subset, find_subset
from core.assembly import Assembly
from core.config.schema import Config
from core.datasets.dataset import DetectionDataset, Transform
from core.datasets.image_cache import ImageCache
from core.datasets.statistics import count_images_over
from core.errors import DataError, UsageError
from core.evaluation.preflight import MIN_AP, PreflightResult, replay_ground_truth
from core.files import sha256_of
from core.trainer.run_folder import DatasetIdentity
from core.trainer.validation import Validation

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainingInputs:
    """Annotations of a run, checked.

    Attributes:
        dataset: the data set they are from.
        classes: by label.
        train: what is trained on: the train split or a subset of it.
        val: what is evaluated on; None where the data set has no val split.
        identity: name and hashes of both.
    """

    dataset: PreparedDataset
    classes: tuple[Category, ...]
    train: AnnotationSet
    val: AnnotationSet | None
    identity: DatasetIdentity


def read_training_inputs(config: Config, say: Say, *, check_files: bool = True) -> TrainingInputs:
    """Read and check the annotations and the images' headers.

    Args:
        config: names the data set and the subset, and has the number of queries.
        say: is told what is trained on, and what is unusual about it.
        check_files: whether to look at the images' headers: of several processes one does.

    Raises:
        DataError: the data set is missing or has a fault.
        UsageError: more (repeated) labels than queries, unless the configuration allows it.
    """
    dataset = open_dataset(Path(config.data.root))
    subset_file = find_subset(dataset, config.data.subset) if config.data.subset is not None else None
    drop_invalid = config.data.on_invalid == "drop"
    train = read_checked_split(
        dataset, "train", subset_file, drop_invalid=drop_invalid, check_files=check_files, on_note=say
    )
    which = describe_subset(subset_file) if subset_file else f"{len(train.images)} images, the train split"
    say(f"training on {dataset.name}: {which}")
    if all(annotation.is_crowd for annotation in train.annotations):
        raise DataError(
            "the training images hold no box to learn from",
            where=str(dataset.splits["train"].annotation_file),
            hint="label some objects, or choose another subset",
            code="F13",
        )
    files = {"train": subset_file or dataset.splits["train"].annotation_file}
    val: AnnotationSet | None = None
    if "val" in dataset.splits:
        val = read_checked_split(dataset, "val", drop_invalid=drop_invalid, check_files=check_files, on_note=say)
        files["val"] = dataset.splits["val"].annotation_file
    else:
        say("the data set has no val split: nothing is evaluated")
    _check_queries(train, config, say)
    identity = DatasetIdentity(dataset.name, {split: sha256_of(file) for split, file in files.items()})
    return TrainingInputs(dataset, dataset.classes, train, val, identity)


def make_datasets(
    inputs: TrainingInputs, assembly: Assembly, say: Say, *, replay: bool = True
) -> tuple[DetectionDataset, Validation | None]:
    """Make the data sets, and replay a sample of each one's ground truth.

    Args:
        inputs: what they hold.
        assembly: has the transforms.
        say: is told what limits their score.
        replay: whether to replay: of several processes one does.

    Raises:
        DataError: the ground truth itself does not score an AP of 0.99: ids, names or box formats are wrong.
    """

    def make(split: str, annotations: AnnotationSet, transform: Transform) -> DetectionDataset:
        root, seed = inputs.dataset.splits[split].image_root, assembly.config.run.seed
        is_train = split == "train"
        return DetectionDataset(annotations, root, inputs.classes, transform, seed=seed, drop_crowds=is_train)

    train = make("train", inputs.train, assembly.train_transform)
    if replay:
        as_evaluated = make("train", inputs.train, assembly.eval_transform)
        _note_limits("train", replay_ground_truth(as_evaluated, inputs.train, inputs.classes, split="train"), say)
    if inputs.val is None:
        return train, None
    val = make("val", inputs.val, assembly.eval_transform)
    if replay:
        _note_limits("val", replay_ground_truth(val, inputs.val, inputs.classes, split="val"), say)
    return train, Validation(val, inputs.val)


def cache_images(
    train: DetectionDataset, val: DetectionDataset | None, num_free_bytes: int, num_processes: int, say: Say
) -> None:
    """Let data sets keep their decoded images, the training set first, as far as half of the free memory holds them.

    The other half is for the model, its batches and the data workers. Memory is taken when loaders are made.

    Args:
        train: what is trained on.
        val: what is evaluated on; None: nothing.
        num_free_bytes: of this machine.
        num_processes: that train on this machine; each keeps images of its own.
        say: is told what is kept, and what is not, and why.
    """
    left = num_free_bytes // 2
    for split, dataset in (("train", train), ("val", val)):
        if dataset is None:
            continue
        cache = ImageCache(dataset.images)
        needed = cache.num_bytes * num_processes
        copies = "" if num_processes == 1 else f" for {num_processes} processes"
        if needed <= left:
            dataset.cache = cache
            left -= needed
            say(f"{split}: decoded images are kept in memory: {_mib(needed)}{copies}")
        else:
            say(
                f"{split}: decoded images are not kept in memory: they would take {_mib(needed)}{copies}, "
                f"and {_mib(left)} may be taken (half of what is free, less what is kept already)"
            )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.0f} MiB"


def _note_limits(split: str, replay: PreflightResult, say: Say) -> None:
    if replay.images_over_limit:
        names = ", ".join(replay.images_over_limit[:3])
        say(f"{split}: {len(replay.images_over_limit)} images hold more than the 100 objects that COCO counts: {names}")
    if replay.ap is not None and replay.ap < MIN_AP:
        say(f"{split}: boxes reach beyond their images; even a perfect detector would score an AP of {replay.ap:.3f}")


def _check_queries(train: AnnotationSet, config: Config, say: Say) -> None:
    num_queries = config.model.num_queries
    demand = count_images_over(train, num_queries, config.label_augmentation)
    if demand.num_images_over == 0:
        return
    text = f"{demand.num_images_over} images have more labels, repeated ones counted, than the {num_queries} queries"
    if not config.data.allow_more_labels_than_queries:
        raise UsageError(
            text,
            where="model.num_queries",
            hint=f"--num-queries {demand.num_queries_needed}, or --set data.allow_more_labels_than_queries=true",
        )
    say(f"{text}; some labels go untrained there")

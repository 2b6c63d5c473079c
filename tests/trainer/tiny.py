"""A training run of seconds; also a command, for tests that kill it: `python -m tests.trainer.tiny FOLDER`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.assembly import Assembly, assemble
from core.config.schema import Config
from core.datasets.dataset import DetectionDataset
from core.errors import DedetrError
from core.processes import ALONE, Processes, join_processes
from core.trainer.reporter import CheckpointSaved, Evaluated, NullReporter, StepDone
from core.trainer.run_folder import DatasetIdentity, RunFolder
from core.trainer.train import train
from core.trainer.trainer import TrainResult
from core.trainer.validation import Validation
from tests.datasets.scenes import CLASSES, make_scene

IDENTITY = DatasetIdentity("scenes", {"train": "1" * 64, "val": "2" * 64})


def tiny_config(**sections: dict[str, Any]) -> Config:
    """Return a small dela-detr with dropout, augmentation and repeated labels; sections override."""
    values: dict[str, dict[str, Any]] = {
        "model": {
            "name": "dela-detr", "hidden_dim": 32, "num_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 2,
            "feedforward_dim": 32, "dropout": 0.1, "num_queries": 10,
        },
        "backbone": {"name": "resnet10", "weights": None, "norm": "batch_norm", "freeze_stem": False},
        "label_augmentation": {"repeat_ratio": 0.5},
        "data": {"short_side": 64, "max_long_side": 96, "batch_size": 2, "num_workers": 0},
        "optimizer": {"lr": 1e-3, "backbone_lr": 1e-4},
        "schedule": {"epochs": 3, "lr_drop_epoch": 2, "warmup_steps": 3},
        "run": {"device": "cpu", "log_every": 3, "checkpoint_share": 1.0, "checkpoint_minutes": 1000},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Config.model_validate(values)


def tiny_assembly(config: Config) -> Assembly:
    """Build the model, always with the same weights."""
    torch.manual_seed(0)
    return assemble(config, CLASSES)


def tiny_datasets(
    folder: Path, assembly: Assembly, num_images: int = 8, size: tuple[int, int] | None = None
) -> tuple[DetectionDataset, Validation]:
    """Make the images, once, and the data sets."""
    scenes = make_scene(folder, num_images, size=size, keep=True)
    seed = assembly.config.run.seed
    train_set = DetectionDataset(scenes, folder, CLASSES, assembly.train_transform, seed=seed, drop_crowds=True)
    val_set = DetectionDataset(scenes, folder, CLASSES, assembly.eval_transform, seed=seed, drop_crowds=False)
    return train_set, Validation(val_set, scenes)


def tiny_run(
    folder: Path,
    config: Config | None = None,
    *,
    resume: bool = False,
    reporter: NullReporter | None = None,
    num_images: int = 8,
    size: tuple[int, int] | None = None,
    validate: bool = True,
    change: Callable[[Assembly], None] | None = None,
    processes: Processes = ALONE,
    **options: Any,
) -> TrainResult:
    """Train in `folder`; the images lie beside it. `change` may meddle with the model before the run."""
    assembly = tiny_assembly(config or tiny_config())
    if change:
        change(assembly)
    images = folder.parent / f"images-{num_images}-{size}"
    train_set, validation = tiny_datasets(images, assembly, num_images, size)
    with contextlib.ExitStack() as stack:
        run: RunFolder | None = None
        if processes.is_main:
            opened = RunFolder.reopen(folder) if resume else RunFolder.create(folder, "dela-detr")
            run = stack.enter_context(opened)
        return train(
            assembly,
            train_set,
            validation if validate else None,
            run,
            torch.device("cpu"),
            options.pop("identity", IDENTITY),
            run_path=folder,
            processes=processes,
            resume=resume,
            reporter=reporter,
            **options,
        )


class Recorder(NullReporter):
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.warnings: list[str] = []

    def run_started(self, event: Any) -> None:
        self.events.append(event)

    def step_done(self, event: StepDone) -> None:
        self.events.append(event)

    def evaluated(self, event: Evaluated) -> None:
        self.events.append(event)

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        self.events.append(event)

    def warning(self, message: str) -> None:
        self.warnings.append(message)


class Narrator(NullReporter):
    """Prints a line an event, so that a test can kill the process between two; rests after one step."""

    def __init__(self, rest_after: int, rest_seconds: float) -> None:
        self.rest_after = rest_after
        self.rest_seconds = rest_seconds

    def step_done(self, event: StepDone) -> None:
        print("step", event.step, flush=True)
        if event.step == self.rest_after:
            time.sleep(self.rest_seconds)

    def evaluation_batch_done(self) -> None:
        print("evaluation batch", flush=True)

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        print("saved", event.step, flush=True)


def main() -> int:
    """Run the command; errors of ours become their exit code, as in `dedetr`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--config", default="{}")
    parser.add_argument("--rest-after", type=int, default=0)
    parser.add_argument("--rest-seconds", type=float, default=60.0)
    parser.add_argument("--num-images", type=int, default=8)
    parser.add_argument("--side", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        config = tiny_config(**json.loads(arguments.config))
        with join_processes(torch.device("cpu")) as processes:
            tiny_run(
                arguments.folder,
                config,
                resume=arguments.resume,
                reporter=Narrator(arguments.rest_after, arguments.rest_seconds),
                num_images=arguments.num_images,
                size=(arguments.side, arguments.side) if arguments.side else None,
                processes=processes,
            )
    except DedetrError as error:
        print(f"{error} [{error.hint}]", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())

"""What a checkpoint costs: bytes, seconds that training waits for it, and seconds that a run is longer by.

    python benchmarks/saves.py [--rounds 7] [--folder DIR] [--backbone resnet50] [--layers 6] [--size 480x640]

dela-detr with 300 queries, with and without averaged weights, on random images. A round is the same number of training
steps three times: without a checkpoint, with one that is written at once (`run.background_saves=false`) before the
first step, and with one that is written in the background while they are made; there are as many steps as that takes.
What differs within a round is the checkpoint's. `--folder` says on which disk: files are flushed to it. Shares are
those of a long run at the default policy (`run.checkpoint_minutes`, `run.checkpoint_share`). Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from cases import Case, Machine, add_machine_options, describe, machine_of, run_fresh, sizes_of
from runs import table

WAYS = ("at once", "in the background")
WITHOUT = "without"


@dataclass(frozen=True)
class Costs:
    """What was measured with or without averaged weights, round by round.

    Attributes:
        num_bytes: of a checkpoint.
        num_steps: of each way in a round.
        seconds: of these steps and what was saved before or beside them, by way.
        waited: seconds of `Journal.save`, by way.
        written: seconds until a checkpoint is there that is written in the background beside nothing.
    """

    num_bytes: int
    num_steps: int
    seconds: dict[str, list[float]]
    waited: dict[str, list[float]]
    written: list[float]

    def longer(self, way: str) -> list[float]:
        """Return by how many seconds a run is longer for a checkpoint."""
        return [a - b for a, b in zip(self.seconds[way], self.seconds[WITHOUT], strict=True)]

    def slower(self, way: str) -> list[float]:
        """Return how many times as long the steps of a round take, the wait before them left out."""
        rounds = zip(self.seconds[way], self.waited[way], self.seconds[WITHOUT], strict=True)
        return [(whole - waited) / steps for whole, waited, steps in rounds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; default: the temporary folder")
    parser.add_argument("--size", default="480x640", help="height and width of the two images (default %(default)s)")
    add_machine_options(parser)
    arguments = parser.parse_args()
    machine = machine_of(arguments)
    case = Case("dela-detr", "fast", "train", 300, sizes_of(arguments.size, "")[0], batch_size=2)
    print(describe(machine) + "\n")
    costs: dict[str, Costs] = {}
    for name, ema_decay in (("no", None), ("yes", 0.999)):
        print(f"averaged weights: {name} ...", file=sys.stderr, flush=True)
        costs[name] = run_fresh("saves", "measure", case, machine, ema_decay, arguments.rounds, arguments.folder)
    headers = [
        "averaged weights",
        "MB",
        "written",
        "training waits, s",
        "the run is longer by, s",
        "share",
        "share longer",
    ]
    print(table(headers, [line_of(name, costs[name], way) for name in costs for way in WAYS]))
    for name, cost in costs.items():
        print(
            f"\nAveraged weights: {name}. A checkpoint in the background is there after {spread(cost.written)} s where "
            f"nothing else goes on. {cost.num_steps} steps take {spread(cost.seconds[WITHOUT])} s without one, and "
            f"{spread(cost.slower(WAYS[1]))} times as long while one is written."
        )


def line_of(name: str, cost: Costs, way: str) -> list[str]:
    """Return a line of the table; shares are those of a long run at the default policy."""
    from core.config.schema import RunConfig

    policy = RunConfig()
    waits, longer = median(cost.waited[way]), median(cost.longer(way))
    seconds_between = max(60 * policy.checkpoint_minutes, waits / policy.checkpoint_share)
    shares = [f"{value / seconds_between:.2%}" for value in (waits, longer)]
    return [name, f"{cost.num_bytes / 1e6:.0f}", way, spread(cost.waited[way]), spread(cost.longer(way)), *shares]


def spread(values: list[float]) -> str:
    """Return the median of the rounds, and from where to where they go."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def measure(case: Case, machine: Machine, ema_decay: float | None, rounds: int, folder: Path | None) -> Costs:
    """Save checkpoints between real training steps; to be called in a fresh process."""
    from workload import as_trained

    with as_trained(machine), tempfile.TemporaryDirectory(dir=folder) as place, contextlib.ExitStack() as stack:
        run = _Run(case, machine, ema_decay, Path(place), stack)
        run.make_steps(3)
        run.save(WAYS[0])
        checkpoint = Path(place) / WAYS[0] / "checkpoints" / "last"
        num_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
        num_steps = run.count_steps()
        costs = Costs(num_bytes, num_steps, {way: [] for way in (WITHOUT, *WAYS)}, {way: [] for way in WAYS}, [])
        for _ in range(rounds):
            costs.seconds[WITHOUT].append(run.make_steps(num_steps))
            for way in WAYS:
                waited = run.save(way)
                costs.waited[way].append(waited)
                costs.seconds[way].append(waited + run.make_steps(num_steps) + run.finish(way))
            costs.written.append(run.save(WAYS[1]) + run.finish(WAYS[1]))
    return costs


class _Run:
    """A model in training, with a folder and a journal for each way to save; all methods return their seconds."""

    def __init__(
        self, case: Case, machine: Machine, ema_decay: float | None, place: Path, stack: contextlib.ExitStack
    ) -> None:
        import torch

        from core.processes import ALONE
        from core.trainer.journal import Journal
        from core.trainer.reporter import NullReporter
        from core.trainer.run_folder import RunFolder
        from core.trainer.state import TrainState
        from core.trainer.step import Stepper
        from workload import build_assembly, build_batch, time_call

        assembly = build_assembly(case, machine)
        config = assembly.config
        averaging = config.model_copy(
            update={"optimizer": config.optimizer.model_copy(update={"ema_decay": ema_decay})}
        )
        assembly = replace(assembly, config=averaging)
        self.stepper = Stepper(assembly, torch.device(machine.device), place, ALONE)
        self.stepper.train()
        self.batch, self.state, self.place = build_batch(case), TrainState(), place
        self.time = lambda call: time_call(call, machine)
        self.journals: dict[str, Journal] = {}
        for way in WAYS:
            settings = config.run.model_copy(update={"background_saves": way == WAYS[1]})
            saving = replace(assembly, config=averaging.model_copy(update={"run": settings}))
            folder = stack.enter_context(RunFolder.create(place / way, case.model))
            self.journals[way] = Journal(folder, saving, ALONE, NullReporter(), None)
            stack.enter_context(self.journals[way].open(0))

    def make_steps(self, number: int) -> float:
        """Make training steps."""

        def step() -> None:
            for _ in range(number):
                self.stepper.step([self.batch], self.state.step, 0, 10_000)
                self.stepper.is_updating = False
                self.state.step += 1

        return self.time(step)

    def save(self, way: str) -> float:
        """Save, and return when training could go on."""
        return self.time(lambda: self.journals[way].save(self.state, self.stepper))

    def finish(self, way: str) -> float:
        """Wait for what is saved in the background."""
        return self.time(self.journals[way].finish_save)

    def count_steps(self) -> int:
        """Return how many steps it takes until a checkpoint is there that is written meanwhile."""
        self.save(WAYS[1])
        checkpoint = f"step-{self.state.step:08d}"
        number = 0
        while (self.place / WAYS[1] / "checkpoints" / "last").resolve().name != checkpoint:
            self.make_steps(1)
            number += 1
        self.finish(WAYS[1])
        return max(1, number)


if __name__ == "__main__":
    main()

"""What the timed benchmarks share, without torch: what is measured, in fresh processes, and a file of what came out."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

WAYS = ("published", "plain", "fast")
BATCH_SIZES = {"train": 2, "infer": 1}


@dataclass(frozen=True)
class Case:
    """A piece of work to measure.

    Attributes:
        model: of the table of six.
        way: "published" is `published_way.py`, all others are values of `model.attention`.
        work: "train" is a whole training step, "infer" a forward pass, "encode" backbone and encoder alone, forward
            and backward.
        num_queries: Q.
        size_hw: of the images, in pixels.
        batch_size: B.
        roi_resolution: bins along each side of a RoI.
        is_padded: whether all images but the first are smaller, by a quarter of each side.
    """

    model: str
    way: str
    work: str
    num_queries: int
    size_hw: tuple[int, int]
    batch_size: int
    roi_resolution: int = 4
    is_padded: bool = False


@dataclass(frozen=True)
class Row:
    """Cases that are measured beside each other.

    Attributes:
        name: what `--only` looks for, and the resumed file knows the row by.
        cases: by what they are called in the table; the last is what the others are compared with.
        cells: how the row begins in its table.
    """

    name: str
    cases: dict[str, Case]
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """How cases are run.

    Attributes:
        backbone: a torchvision ResNet.
        num_layers: of encoder and decoder each.
        device: cpu or cuda.
        precision: float32 or bfloat16 (autocast).
        num_threads: of PyTorch on the CPU; None leaves it to PyTorch.
    """

    backbone: str
    num_layers: int
    device: str
    precision: str
    num_threads: int | None


@dataclass
class Results:
    """A file with a line for each measured row, written as they come.

    Args:
        path: of the file; it starts empty unless resumed.
        resume: keep the rows that it holds.
    """

    path: Path
    resume: bool
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.resume and self.path.exists():
            lines = [json.loads(line) for line in self.path.read_text().splitlines()]
            self.rows = {line["key"]: line for line in lines}
        else:
            self.path.write_text("")

    def measure(self, row: Row, machine: Machine, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what stands in the file for a row on a machine, or run it and write it down."""
        key = json.dumps([row.name, asdict(machine), {name: asdict(case) for name, case in row.cases.items()}])
        if key not in self.rows:
            print(f"{row.name} ...", file=sys.stderr, flush=True)
            self.rows[key] = {"key": key, "name": row.name, **run()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.rows[key]) + "\n")
        return self.rows[key]


def add_options(parser: argparse.ArgumentParser, results: str) -> None:
    """Add the options that the timed benchmarks share.

    Args:
        parser: to add them to.
        results: name of the file of results, without its suffix.
    """
    parser.add_argument("--only", default="", help="measure rows whose name has this (a regular expression)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each case is measured (default %(default)s)")
    parser.add_argument(
        "--max-seconds", type=float, default=240, help="begin no further round of a row after these (default 240)"
    )
    add_machine_options(parser)
    parser.add_argument("--sizes", help="heights and widths, such as 480x640,800x1066")
    parser.add_argument("--queries", help="numbers of queries, such as 100,300")
    parser.add_argument("--batch-size", type=int, help="of training and inference (default 2 and 1)")
    parser.add_argument(
        "--ways", default=",".join(WAYS), help="the last is compared with the others (default %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=Path(f"runs/benchmarks/{results}.jsonl"))
    parser.add_argument("--resume", action="store_true", help="measure only what the file of results lacks")


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `machine_of` reads."""
    parser.add_argument("--backbone", default="resnet50", help="a ResNet of torchvision, or resnet10")
    parser.add_argument("--layers", type=int, default=6, help="of encoder and decoder each (default %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU (default: its own choice)")


def machine_of(arguments: argparse.Namespace) -> Machine:
    """Return how the options say that cases are run."""
    return Machine(arguments.backbone, arguments.layers, arguments.device, arguments.precision, arguments.threads)


def sizes_of(text: str | None, default: str) -> list[tuple[int, int]]:
    """Read heights and widths such as `480x640,800x1066`."""
    sizes = []
    for part in (text or default).split(","):
        height, width = part.split("x")
        sizes.append((int(height), int(width)))
    return sizes


def numbers_of(text: str | None, default: str) -> list[int]:
    """Read numbers such as `100,300`."""
    return [int(part) for part in (text or default).split(",")]


def chosen(rows: Sequence[Row], only: str) -> list[Row]:
    """Return the rows that `--only` names."""
    kept = [row for row in rows if re.search(only, row.name)]
    if not kept:
        raise SystemExit(f"--only {only}: no row has this; there are: {'; '.join(row.name for row in rows)}")
    return kept


class KilledError(RuntimeError):
    """A process was killed, most likely for want of memory."""


def run_fresh(module: str, function: str, *arguments: Any) -> Any:
    """Return what a function of a module beside this one returns in a process of its own.

    What goes wrong in it, it says itself, and ends this process too.

    Raises:
        KilledError: a signal ended the process.
    """
    # Threads that spin while they wait slow down every other process; `dedetr` sets the same.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, module, function, arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        if process.exitcode is not None and process.exitcode < 0:
            raise KilledError(f"{function} was ended by signal {-process.exitcode}") from None
        raise SystemExit(1) from None
    finally:
        process.join()


def _answer(connection: Connection, module: str, function: str, arguments: tuple[Any, ...]) -> None:
    connection.send(getattr(import_module(module), function)(*arguments))


def time_fresh(row: Row, machine: Machine, rounds: int, max_seconds: float) -> dict[str, Any]:
    """Return the seconds of a row's cases, round by round, under `seconds`.

    A published way that is killed is left out, and the others measured without it.
    """
    try:
        return {"seconds": run_fresh("workload", "time_cases", row.cases, machine, rounds, max_seconds)}
    except KilledError as error:
        others = {name: case for name, case in row.cases.items() if case.way != "published"}
        if len(others) == len(row.cases):
            raise
        print(f"{row.name}: {error}; the published way is left out", file=sys.stderr)
    return {"seconds": run_fresh("workload", "time_cases", others, machine, rounds, max_seconds)}


def ways_of(case: Case, ways: Sequence[str]) -> Row:
    """Return the row that computes a case in several ways."""
    size = name_size(case.size_hw) + (" padded" if case.is_padded else "")
    return Row(
        name=f"{case.model} {case.num_queries} {size} {case.work}",
        cases={way: replace(case, way=way) for way in ways},
        cells=(case.model, str(case.num_queries), size, name_work(case)),
    )


def ratio(seconds: dict[str, list[float]], slow: str, quick: str) -> str:
    """Return how many times as long one case takes as another: the median over rounds, and from where to where."""
    if slow not in seconds or quick not in seconds:
        return "-"
    ratios = [a / b for a, b in zip(seconds[slow], seconds[quick], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def middle(seconds: dict[str, list[float]], name: str) -> str:
    """Return the median seconds of a case."""
    return f"{median(seconds[name]):.3g}" if name in seconds else "-"


def describe(machine: Machine) -> str:
    """Return one sentence on where and how was measured."""
    import torch

    device = f"{processor()}, {os.cpu_count()} cores"
    if machine.device == "cuda":
        device = f"{torch.cuda.get_device_name()} beside {device}"
    num_threads = machine.num_threads or torch.get_num_threads()
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    return (
        f"{device}, {platform.system()}; {threads}; Python {platform.python_version()}, torch {version('torch')}, "
        f"torchvision {version('torchvision')}; {machine.backbone}, {machine.num_layers} + {machine.num_layers} "
        f"layers, {machine.precision}; revision {revision()}."
    )


def name_work(case: Case) -> str:
    """Return what is measured, and the batch size, as they stand in tables."""
    return f"{'training step' if case.work == 'train' else 'inference'}, B{case.batch_size}"


def name_size(size_hw: tuple[int, int]) -> str:
    """Return height and width as they stand in tables."""
    return f"{size_hw[0]}x{size_hw[1]}"


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)):
        return found[1]
    return platform.processor() or platform.machine()


def revision() -> str:
    """Return which code is measured."""
    folder = Path(__file__).resolve().parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"

"""A long run of `dedetr train`, and what it holds as it goes on: memory, file handles, threads, files on the disk.

    python benchmarks/long_run.py [--steps 5000] [--folder DIR] [--samples FILE] [train flags, such as --tensorboard]

A tiny model on the demo set with two data workers, an evaluation every 480 steps, and checkpoints. It is looked at from
outside, every 25 steps; `heap.py` tells what of its memory is in use, and what lies free between that. From step 500
on, when all that is kept from then on has been made, a line is fitted to each quantity (least squares): its slope, by
1,000 steps, with its standard error. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cases import processor, revision
from runs import table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.faults.kills import Command, prepare
from tests.faults.process_tree import family

FLAGS = [
    "--model", "dela-detr", "--batch-size", "2", "--workers", "2", "--short-side", "64", "--device", "cpu",
    "--ema", "0.999", "--set", "data.max_long_side=96", "--set", "model.hidden_dim=32", "--set", "model.dropout=0.1",
    "--set", "model.num_decoder_layers=2", "--set", "model.feedforward_dim=32", "--set", "run.log_every=5",
    "--set", "run.eval_every=4", "--set", "run.checkpoint_every=1", "--set", "run.checkpoint_minutes=0.5",
]  # fmt: skip
"""120 steps make an epoch."""
SETTLED = 500
"""Steps until workers, buffers and caches are as large as they will be."""
STEPS_BETWEEN = 25

Sample = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--from-step", type=int, default=SETTLED, help="fit from this step on (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the run is; default: a temporary folder, removed at the end")
    parser.add_argument("--samples", type=Path, help="a JSON line for each look at the run is written here")
    arguments, flags = parser.parse_known_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="long-run-") as temporary:
        folder = prepare(arguments.folder or Path(temporary))
        words = ["train", *FLAGS, "--steps", str(arguments.steps), "--out", "runs/long", "--overwrite", *flags]
        heap = folder / "heap.json"
        program = (str(Path(__file__).with_name("heap.py").resolve()), str(heap))
        samples = watch(Command(words, folder, folder / "runs" / "long", program=program), heap)
    if arguments.samples:
        arguments.samples.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    settled = [sample for sample in samples if sample["step"] >= arguments.from_step]
    print(
        f"{processor()}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, torch "
        f"{version('torch')}; revision {revision()}; {arguments.steps} steps, {len(settled)} looks from step "
        f"{settled[0]['step']:.0f} on; {(time.monotonic() - began) / 60:.1f} minutes.\n"
    )
    headers = ["", f"at step {settled[0]['step']:.0f}", "at the end", "least", "most", "slope by 1,000 steps"]
    print(table(headers, [line_of(name, settled) for name in settled[0] if name != "step"]))


def watch(command: Command, heap: Path) -> list[Sample]:
    """Look at a run until it ends, whenever it has come on."""
    samples: list[Sample] = []
    last = 0
    while command.process.poll() is None:
        time.sleep(0.05)
        step = command.last_record[1]
        if step >= last + STEPS_BETWEEN and (sample := look(command, heap, step)) is not None:
            samples.append(sample)
            last = step
    if command.process.returncode:
        raise SystemExit(command.said)
    return samples


def look(command: Command, heap: Path, step: int) -> Sample | None:
    """Return what a run holds; None if something is gone before it was counted."""
    main = command.process.pid
    try:
        workers = [process.pid for process in family(main) if process.pid != main]
        heap_kib = json.loads(heap.read_text()) if heap.exists() else {}
        files = [path.stat().st_size for path in command.checkpoints.glob("*/*")]
        return {
            "step": step,
            "main process, resident KiB": status(main, "VmRSS"),
            "main process, anonymous KiB": status(main, "RssAnon"),
            **{f"main process, heap {name} KiB": kib for name, kib in heap_kib.items()},
            "data workers": len(workers),
            "data workers, resident KiB in sum": sum(status(pid, "VmRSS") for pid in workers),
            "data workers, anonymous KiB in sum": sum(status(pid, "RssAnon") for pid in workers),
            "main process, threads": status(main, "Threads"),
            "main process, file handles": num_handles(main),
            "data workers, file handles in sum": sum(num_handles(pid) for pid in workers),
            "metrics.jsonl, KiB": (command.run / "metrics.jsonl").stat().st_size / 1024,
            "checkpoints, KiB": sum(files) / 1024,
        }
    except FileNotFoundError:
        return None


def status(pid: int, name: str) -> int:
    """Return a number of /proc/PID/status."""
    found = re.search(rf"^{name}:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def num_handles(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def line_of(name: str, samples: Sequence[Sample]) -> list[str]:
    """Return a line of the table."""
    values = np.array([sample[name] for sample in samples])
    slope, error = fit(np.array([sample["step"] for sample in samples]) / 1000, values)
    ends = (values[0], values[-1], values.min(), values.max())
    return [name, *(f"{value:,.0f}" for value in ends), f"{slope:+,.1f} ± {error:.1f}"]


def fit(places: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return the slope of the line nearest to some values, and its standard error, as if they were independent."""
    centred = places - places.mean()
    slope = float(centred @ values / (centred @ centred))
    rest = values - values.mean() - slope * centred
    return slope, float(np.sqrt(rest @ rest / (len(values) - 2) / (centred @ centred)))


if __name__ == "__main__":
    main()

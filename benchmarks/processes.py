"""One process against several, and accumulation against none: losses side by side.

    python benchmarks/processes.py --data DIR [train flags, such as --backbone-weights FILE]

Without dropout and augmentation, on images of one size, with frozen batch norm: there parts of a batch must add up to
the whole of it. Numbers of later steps drift apart, as AdamW divides each gradient by its own size and so lets
rounding grow: the same drift is shown for one process with another number of threads, which computes the same function.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from runs import FinishedRun, table, train

VARIANTS = {
    "1 process": [],
    "1 process, other threads": [],
    "2 processes": ["--nproc", "2"],
    "accumulate 2": ["--accumulate", "2"],
    "2 processes, accumulate 2": ["--nproc", "2", "--accumulate", "2"],
}
EXACT = ["--set", "model.dropout=0", "--set", "data.augment=false", "--set", "run.log_every=1", "--workers", "0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=4)
    arguments, flags = parser.parse_known_args()
    flags += ["--data", arguments.data, "--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: _run(Path(folder) / str(number), name, flags) for number, name in enumerate(VARIANTS)}
        losses = {name: [line["loss"] for line in run.lines("train")] for name, run in runs.items()}
        norms = {name: [line["grad_norm"] for line in run.lines("train")] for name, run in runs.items()}
        scores = {name: run.lines("eval")[-1]["stats"]["AP"] for name, run in runs.items()}
    first, *others = VARIANTS
    rows = [
        [step + 1, f"{losses[first][step]:.6f}", *(_share(losses[name][step], losses[first][step]) for name in others)]
        for step in range(arguments.steps)
    ]
    print("Loss, and how far the others are from it, as a share of it:\n")
    print(table(["step", *VARIANTS], rows))
    print("\nNorm of the gradients at the first step, likewise:\n")
    cells = [_share(norms[name][0], norms[first][0]) for name in others]
    print(table(list(VARIANTS), [[f"{norms[first][0]:.6f}", *cells]]))
    print("\nAP after the last step: " + ", ".join(f"{name} {score:.6f}" for name, score in scores.items()))


def _run(folder: Path, name: str, flags: list[str]) -> FinishedRun:
    import os

    os.environ["OMP_NUM_THREADS"] = "2" if name.endswith("other threads") else "1"
    return train(folder, [*flags, *EXACT, *VARIANTS[name]])


def _share(value: float, reference: float) -> str:
    return f"{(value - reference) / reference:+.1e}"


if __name__ == "__main__":
    main()

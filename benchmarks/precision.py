"""bfloat16 against float32 over some steps of training: losses, and time, side by side.

    python benchmarks/precision.py --data DIR [train flags]

The yardstick is a second float32 run that differs in nothing but its seed's dropout, augmentation and order.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean

from runs import table, train

VARIANTS = {
    "float32": ["--precision", "float32"],
    "bfloat16": ["--precision", "bfloat16"],
    "float32, another seed": ["--precision", "float32", "--seed", "7"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--window", type=int, default=10)
    arguments, flags = parser.parse_known_args()
    flags += ["--data", arguments.data, "--steps", str(arguments.steps), "--set", f"run.log_every={arguments.window}"]
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: train(Path(folder) / str(number), [*flags, *VARIANTS[name]]) for number, name in enumerate(VARIANTS)
        }
        lines = {name: run.lines("train") for name, run in runs.items()}
        scores = {name: run.lines("eval")[-1]["stats"] for name, run in runs.items()}
        memory = {name: run.peak_mib for name, run in runs.items()}
    rows = [
        [f"to {line['step']}", *(f"{lines[name][number]['loss']:.3f}" for name in VARIANTS)]
        for number, line in enumerate(lines["float32"])
    ]
    speeds = {name: fmean(line["time_images_per_s"] for line in lines[name][1:]) for name in VARIANTS}
    rows.append(["images/s", *(f"{speeds[name]:.2f}" for name in VARIANTS)])
    rows.append(["peak MiB, evaluation included", *(f"{memory[name]:.0f}" for name in VARIANTS)])
    rows.append(["AP after them", *(f"{scores[name]['AP']:.4f}" for name in VARIANTS)])
    print("Mean loss by step:\n")
    print(table(["steps", *VARIANTS], rows))


if __name__ == "__main__":
    main()

"""Where a training step spends its time, part by part, forward and backward: published way, plain and fast.

    python benchmarks/profile_step.py [--model de-detr] [--queries 300] [--size 480x640] [--rounds 3]

PyTorch's profiler records a step; every operation's own time (without those it calls) goes to the innermost part that
it was called from, and in the backward pass to the part whose forward pass it differentiates, which autograd's sequence
numbers tell. All lines therefore add up to the whole step. Medians over rounds, the ways by turns in one process. On a
GPU times are those of kernels. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
from statistics import median

from cases import WAYS, Case, add_machine_options, describe, machine_of, name_size, run_fresh, sizes_of
from runs import table

Times = dict[str, tuple[float, float]]
"""Seconds by part, forward and backward."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="de-detr")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    add_machine_options(parser)
    arguments = parser.parse_args()
    machine = machine_of(arguments)
    (size_hw,) = sizes_of(arguments.size, "")
    cases = {
        way: Case(arguments.model, way, "train", arguments.queries, size_hw, arguments.batch_size)
        for way in arguments.ways.split(",")
    }
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # The profiler's own remarks.
    profiles, seconds = run_fresh("step_parts", "profile_cases", cases, machine, arguments.rounds)
    print(describe(machine) + "\n")
    print(
        f"{arguments.model}, {arguments.queries} queries, {name_size(size_hw)}, a training step of "
        f"{arguments.batch_size} images; seconds, forward + backward.\n"
    )
    parts = next(iter(profiles.values()))
    rows = [[part, *(cell(profiles[way], part) for way in cases)] for part in parts]
    sums = [f"{sum(sum(profiles[way][part]) for part in parts):.2f}" for way in cases]
    alone = [f"{median(seconds[way]):.2f} ({min(seconds[way]):.2f} to {max(seconds[way]):.2f})" for way in cases]
    print(table(["part", *cases], [*rows, ["sum", *sums], ["a step that is not recorded (from to)", *alone]]))


def cell(times: Times, part: str) -> str:
    """Return both passes of a part, and their share of the step."""
    forward, backward = times[part]
    share = (forward + backward) / sum(sum(passes) for passes in times.values())
    return f"{forward:.3g} + {backward:.3g} ({share:.0%})"


if __name__ == "__main__":
    main()

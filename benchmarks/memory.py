"""Peak memory of training steps and inference: ours against the plain implementation and the published way.

    python benchmarks/memory.py [--only REGEX] [--resume]

Each case has a fresh process that calls it twice. "work" is what the two calls held at most beyond what the process,
with Python, PyTorch, model and images, held before them: activations, and in training gradients and the optimizer's
moments. "process" is the most that the whole process held during the calls. On a GPU both are of PyTorch's allocator,
and "process" is the work with the model's weights. Ratios below 1 mean that ours takes less. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cases import Case, KilledError, Machine, Results, Row, add_options, chosen, describe, machine_of, run_fresh
from runs import table
from speed import way_rows

KINDS = ("work", "process")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "memory")
    arguments = parser.parse_args()
    machine = machine_of(arguments)
    ways = arguments.ways.split(",")
    results = Results(arguments.results, arguments.resume)
    print(describe(machine) + "\n")
    lines = []
    for row in chosen(way_rows(arguments), arguments.only):
        measured = results.measure(row, machine, lambda row=row: measure_row(row, machine))
        lines.append(line_of(row, measured["mib"]))
        print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
    ratios = [f"{ways[-1]} / {way}, {kind}" for kind in KINDS for way in ways[:-1]]
    headers = ["model", "queries", "image", "work", *ratios, *(f"{way} MiB, work (process)" for way in ways)]
    print(table(headers, lines))


def measure_row(row: Row, machine: Machine) -> dict[str, Any]:
    """Return the memory of each case that could be run, under `mib`."""
    measured = {name: measure(case, machine) for name, case in row.cases.items()}
    return {"mib": {name: memory for name, memory in measured.items() if memory is not None}}


def measure(case: Case, machine: Machine) -> dict[str, float] | None:
    """Return the memory of a case in MiB; None for a published way that was killed."""
    try:
        memory: dict[str, float] = run_fresh("workload", "measure_memory", case, machine)
    except KilledError as error:
        if case.way != "published":
            raise
        print(f"{error}; the published way is left out", file=sys.stderr)
        return None
    return memory


def line_of(row: Row, mib: dict[str, dict[str, float]]) -> list[str]:
    *others, last = row.cases
    ratios = [f"{mib[last][kind] / mib[way][kind]:.2f}" if way in mib else "-" for kind in KINDS for way in others]
    amounts = [f"{mib[way]['work']:.0f} ({mib[way]['process']:.0f})" if way in mib else "-" for way in row.cases]
    return [*row.cells, *ratios, *amounts]


if __name__ == "__main__":
    main()

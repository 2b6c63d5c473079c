"""Training steps and inference: ours against the plain implementation and the published way of computing.

    python benchmarks/speed.py [--only REGEX] [--rounds 3] [--resume]

The cases of a row alternate in one process, and each row has a process of its own. Ratios are medians over rounds, with
the smallest and the largest; above 1 the last case is the faster one. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys

from cases import (
    BATCH_SIZES,
    Case,
    Results,
    Row,
    add_options,
    chosen,
    describe,
    machine_of,
    middle,
    name_size,
    numbers_of,
    ratio,
    sizes_of,
    time_fresh,
    ways_of,
)
from runs import table

MODELS = ("de-detr", "de-conddetr")
SIZES, QUERIES = "480x640,800x1066", "100,300"
ENCODER_HEADERS = ["model", "queries", "image", "step / backbone + encoder", "backbone + encoder s", "step s"]
DETR_HEADERS = ["image", "detr, published way / dela-detr", "detr / dela-detr", "published s", "detr s", "dela-detr s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "speed")
    arguments = parser.parse_args()
    machine = machine_of(arguments)
    tables = [
        (way_headers(arguments.ways.split(",")), way_rows(arguments)),
        (ENCODER_HEADERS, encoder_rows(arguments)),
        (DETR_HEADERS, detr_rows(arguments)),
    ]
    wanted = {row.name for row in chosen([row for _, rows in tables for row in rows], arguments.only)}
    results = Results(arguments.results, arguments.resume)
    print(describe(machine) + "\n")
    for headers, rows in tables:
        lines = []
        for row in (row for row in rows if row.name in wanted):
            measured = results.measure(
                row, machine, lambda row=row: time_fresh(row, machine, arguments.rounds, arguments.max_seconds)
            )
            lines.append(line_of(row, measured["seconds"]))
            print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
        if lines:
            print(table(headers, lines) + "\n")


def way_rows(arguments: argparse.Namespace) -> list[Row]:
    """Return the rows of the main table: several ways to compute a model, and one row of padded images."""
    sizes, queries = sizes_of(arguments.sizes, SIZES), numbers_of(arguments.queries, QUERIES)
    cases = [
        Case(model, "", work, num_queries, size_hw, arguments.batch_size or batch_size)
        for model in MODELS
        for size_hw in sizes
        for num_queries in queries
        for work, batch_size in BATCH_SIZES.items()
    ]
    batch_size = max(arguments.batch_size or BATCH_SIZES["train"], 2)
    cases.append(Case(MODELS[0], "", "train", max(queries), sizes[0], batch_size, is_padded=True))
    return [ways_of(case, arguments.ways.split(",")) for case in cases]


def way_headers(ways: list[str]) -> list[str]:
    ratios = [f"{way} / {ways[-1]}" for way in ways[:-1]]
    return ["model", "queries", "image", "work", *ratios, *(f"{way} s" for way in ways)]


def encoder_rows(arguments: argparse.Namespace) -> list[Row]:
    """Return training steps beside backbone and encoder of the same model, forward and backward without an update."""
    num_queries, batch_size = max(numbers_of(arguments.queries, QUERIES)), arguments.batch_size or BATCH_SIZES["train"]
    way = arguments.ways.split(",")[-1]
    return [
        Row(
            name=f"{model} {num_queries} {name_size(size_hw)} encoder",
            cases={
                "step": Case(model, way, "train", num_queries, size_hw, batch_size),
                "encoder": Case(model, way, "encode", num_queries, size_hw, batch_size),
            },
            cells=(model, str(num_queries), name_size(size_hw)),
        )
        for model in ("dela-detr", "dela-conddetr")
        for size_hw in sizes_of(arguments.sizes, SIZES)
    ]


def detr_rows(arguments: argparse.Namespace) -> list[Row]:
    """Return training steps of the original detr, with fewer queries, beside those of dela-detr."""
    queries, batch_size = numbers_of(arguments.queries, QUERIES), arguments.batch_size or BATCH_SIZES["train"]
    few, many, way = min(queries), max(queries), arguments.ways.split(",")[-1]
    return [
        Row(
            name=f"detr {few} dela-detr {many} {name_size(size_hw)}",
            cases={
                "published": Case("detr", "published", "train", few, size_hw, batch_size),
                "detr": Case("detr", way, "train", few, size_hw, batch_size),
                "dela-detr": Case("dela-detr", way, "train", many, size_hw, batch_size),
            },
            cells=(name_size(size_hw),),
        )
        for size_hw in sizes_of(arguments.sizes, SIZES)
    ]


def line_of(row: Row, seconds: dict[str, list[float]]) -> list[str]:
    """Return a row of its table: the ratios to the last case, or with two cases the first to the second."""
    names = list(row.cases)
    ratios = [ratio(seconds, name, names[-1]) for name in names[:-1]]
    shown = names[::-1] if len(names) == 2 else names
    return [*row.cells, *ratios, *(middle(seconds, name) for name in shown)]


if __name__ == "__main__":
    main()

"""`dedetr subsample`: a seeded, nested part of the training images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dedetr_cli.options import DataRoot, Debug, Json
from dedetr_cli.output import as_dict, print_json, print_line, print_note, stdout, table


def subsample(
    rate: Annotated[float, typer.Option("--rate", help="Share of the training images, in (0, 1].")],
    data: DataRoot = Path("data"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed takes other images.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="The subset file. (default: beside the training annotations)")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Choose a part of the training images; smaller rates of one seed lie inside larger ones.

    Train on it with `dedetr train --subset RATE`.
    """
    from core import api

    report = api.subsample(data, rate, seed=seed, out=out)
    if as_json:
        print_json("subsample", as_dict(report))
        return
    title = f"{report.num_images} of {report.num_parent_images} images ({rate:g}, seed {seed})"
    stdout().print(table(title, ("class", "boxes"), list(report.class_counts.items())))
    print_line(str(report.path))
    is_plain = data == Path("data") and seed == 0 and out is None
    where = repr(rate) if is_plain else f"{report.path} --data {data}"
    print_note(f"train on it: dedetr train --subset {where}")

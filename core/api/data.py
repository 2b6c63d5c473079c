"""Data sets: prepared, and cut into subsets. Loads no PyTorch."""

from __future__ import annotations

from pathlib import Path

from core.annotations.content import ReadOptions
from core.annotations.prepare import PrepareReport, prepare
from core.annotations.prepared import open_dataset
from core.annotations.splits import SplitPlan
from core.annotations.subsets import SubsetReport, check_rate
from core.annotations.subsets import subsample as choose_subset


def prepare_data(
    source: Path | None,
    out: Path = Path("data"),
    *,
    source_format: str | None = None,
    val_rate: float | None = None,
    seed: int = 0,
    one_based: bool = False,
    copy_images: bool = False,
    strict: bool = False,
    drop_invalid: bool = False,
) -> PrepareReport:
    """Prepare a data set in `out`; without a source the embedded demo set, with pictures in `images` beside it.

    The arguments are those of `core.annotations.prepare.prepare`.

    Raises:
        DataError: the source is missing or has a fault; nothing is left behind.
        UsageError: `out` holds something that prepare-data did not write.
    """
    return prepare(
        source,
        out,
        format=source_format,
        plan=SplitPlan(val_rate, seed),
        options=ReadOptions(one_based=one_based),
        copy_images=copy_images,
        strict=strict,
        drop_invalid=drop_invalid,
    )


def subsample(data: Path, rate: float, *, seed: int = 0, out: Path | None = None) -> SubsetReport:
    """Choose a seeded part of the training images; smaller rates lie inside larger ones.

    Raises:
        UsageError: the rate is not in (0, 1].
        DataError: there is no data set, or it has a fault.
    """
    # A wrong rate is wrong whatever the data set is.
    check_rate(rate, "--rate")
    return choose_subset(open_dataset(data), rate, seed=seed, out=out)

"""`metrics.jsonl`: what happened in a run, one JSON object a line.

Every line has `kind`, `epoch` (from 1) and `step` (optimizer steps done).

* `train`: `lr`, `loss`, `grad_norm`, `terms` (by name), means over the steps since the line before;
  `time_images_per_s` and `time_data_wait_share` of the same steps.
* `eval`: `stats` (COCO's twelve numbers, null where there is nothing to measure), `per_class`, `is_best`;
  `time_minutes` since the run began.

Keys that begin with `time_` depend on the machine and its mood. All others are the same, to the last bit, for a run
that was stopped and resumed and one that was not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from core.errors import CheckpointError
from core.files import machine_errors


class Records:
    """Appends to `metrics.jsonl`.

    Args:
        path: the file; made when missing.
        offset: length in bytes that the file had when the state was saved from which the run goes on; what was
            written after it is cut off, as it will be written again.

    Raises:
        CheckpointError: the file is shorter than that.
        MachineError: the file cannot be written.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        with machine_errors(path, "write the records"):
            self._stream = path.open("ab")
            size = os.fstat(self._stream.fileno()).st_size
            if size < offset:
                self._stream.close()
                raise CheckpointError(
                    f"has {size} bytes, but the checkpoint was saved when it had {offset}",
                    where=str(path),
                    hint="it was changed since; put it back as it was",
                )
            self._stream.truncate(offset)

    @property
    def offset(self) -> int:
        """Length of the file in bytes."""
        return os.fstat(self._stream.fileno()).st_size

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append a line; numbers that are not finite become null.

        Raises:
            MachineError: the disk is full.
        """
        line = json.dumps({"kind": kind, **_finite(values)}, allow_nan=False) + "\n"
        with machine_errors(self.path, "write the records"):
            self._stream.write(line.encode())
            self._stream.flush()

    def sync(self) -> None:
        """Flush the file to the disk; any thread may."""
        with machine_errors(self.path, "write the records"):
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`, without a last one that is cut off.

    Raises:
        MachineError: the file cannot be read.
        CheckpointError: a line is not JSON.
    """
    with machine_errors(path, "read the records"):
        lines = path.read_bytes().splitlines(keepends=True)
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(f"the line is not JSON: {error}", where=f"{path}:{number}") from error
    return rows

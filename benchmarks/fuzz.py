"""Spoilt files for every reader, the check, subsets, images and the configuration: a result or a clean error, and no
more memory than the files justify (`tests/faults/fuzz.py` says what that is).

    python benchmarks/fuzz.py [--examples 100000] [--seed 0] [--only REGEX] [--folder DIR] [--findings DIR]

The examples are dealt out evenly over the targets; hypothesis makes them from sound files. A line is printed as soon
as a target is done, so that a run that was stopped goes on with `--only`. Memory is the most that an example took
beyond what was in use before, by the growth of the process (Linux) or by tracing Python's allocations (elsewhere, and
much slower). Seconds are of computing; the slowest are those of one example. Where something breaks the rule, its files
are written to `--findings`, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from runs import table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.faults.fuzz import READ, Finding, Memory, Target, fuzz
from tests.faults.fuzz_targets import TARGETS

MAX_SECONDS = 20.0
"""Of computing, for one example; usual are milliseconds."""
HEADERS = ["target", "examples", "read", "refused", "uncaught", "most memory, MB", "seconds", "slowest, s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=re.compile, default=re.compile(""), metavar="REGEX", help="targets, by name")
    parser.add_argument("--folder", type=Path, help="where the files are made; best in memory, such as /dev/shm")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="where offending files are kept")
    arguments = parser.parse_args()
    num_each = -(-arguments.examples // len(TARGETS))
    chosen = [target for target in TARGETS if arguments.only.search(target.name)]
    print("\n".join(table(HEADERS, []).splitlines()[:2]), flush=True)
    num_findings = num_examples = 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for target in chosen:
            row, finding = fuzz_one(target, Path(folder), num_each, arguments.seed)
            print(table(row, []).splitlines()[0], flush=True)
            num_examples += int(row[1])
            if finding is not None:
                num_findings += 1
                keep(finding, arguments.findings / re.sub(r"\W+", "-", target.name))
    print(f"\n{num_examples} examples, seed {arguments.seed}, findings: {num_findings}")
    sys.exit(1 if num_findings else 0)


def fuzz_one(target: Target, folder: Path, num_examples: int, seed: int) -> tuple[list[str], Finding | None]:
    """Return a line of the table, and what was found."""
    memory = Memory()
    outcomes: Counter[str] = Counter()
    most_bytes = 0
    slowest = 0.0
    began = last = time.process_time()

    def count(outcome: str) -> None:
        nonlocal most_bytes, slowest, last
        outcomes[outcome] += 1
        most_bytes = max(most_bytes, memory.peak_bytes)
        slowest = max(slowest, time.process_time() - last)
        last = time.process_time()

    finding: Finding | None = None
    try:
        fuzz(target, folder, num_examples, memory, seed=seed, max_seconds=MAX_SECONDS, on_outcome=count)
    except Finding as error:
        finding = error
    seconds = time.process_time() - began
    refused = ", ".join(f"{code} {count}" for code, count in sorted(outcomes.items()) if code != READ)
    row = [target.name, str(outcomes.total()), str(outcomes[READ]), refused, str(int(finding is not None))]
    return [*row, f"{most_bytes / 1e6:.1f}", f"{seconds:.0f}", f"{slowest:.1f}"], finding


def keep(finding: Finding, folder: Path) -> None:
    """Write what was found to a new folder: its files, and what went wrong with them."""
    place = next(path for number in range(1, 10_000) if not (path := Path(f"{folder}-{number}")).exists())
    finding.example.write(place / "files")
    (place / "finding.txt").write_text("".join(traceback.format_exception(finding)), encoding="utf-8", errors="replace")
    print(f"{finding}\nits files are in {place}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

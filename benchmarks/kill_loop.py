"""Runs of `dedetr train`, killed at random moments and resumed until they end, each compared with an unbroken one.

    python benchmarks/kill_loop.py [--kills 100] [--processes 1] [--seed 0] [--folder DIR] [--records FILE]

The runs have dropout, shuffling, augmentation, repeated labels, averaged weights, accumulation, two data workers,
autocast (bfloat16; of one process every third run float16), evaluations, and checkpoints between steps;
`tests/faults/kills.py` has their flags. SIGKILL goes to the command alone, to all of its processes or, of two
processes, to one; a third of them while a checkpoint is being saved, others while the command starts, removes what an
interrupted save has left, or evaluates. In between come SIGTERM, SIGINT, SIGUSR1, SIGHUP, and second ones. A run that
has no checkpoint yet is started anew. At the end its metrics.jsonl and metrics.csv, its last and best checkpoints must
equal those of a run that nobody stopped, to the last bit (but for times). Prints Markdown, after Ctrl-C too; the exit
code is 1 if anything was otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from signal import Signals
from typing import TextIO

from cases import processor, revision
from runs import table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.faults.kills import EVERYTHING_ON, BrokenRun, Command, Desk, Kill, Wish, break_run, prepare
from tests.trainer.comparison import assert_same_run

PRECISIONS = {
    "bfloat16": EVERYTHING_ON,
    # On a CPU a step takes twenty times as long. It has some steps that overflow, and some that do not.
    "float16": [
        *EVERYTHING_ON, "--epochs", "4", "--sample-repeat", "1", "--short-side", "32", "--set", "data.max_long_side=48",
    ],
}  # fmt: skip
"""Flags of the runs by precision."""
TURNS = ("bfloat16", "bfloat16", "float16")
MAX_KILLS_PER_RUN = 25
"""After these a run is let alone."""
SOFT = (Signals.SIGTERM, Signals.SIGINT, Signals.SIGUSR1, Signals.SIGHUP)


@dataclass(frozen=True)
class Timings:
    """How long an unbroken run takes for what.

    Attributes:
        start: seconds until it trains.
        save: of a checkpoint.
        evaluation: of one.
        training: from the first step to the end.
    """

    start: float
    save: float
    evaluation: float
    training: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs; runs that are under way then are finished")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--soft", type=float, default=0.25, help="share of signals that can be heard (default 0.25)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument(
        "--folder", type=Path, help="where the runs are; default: a temporary folder, removed at the end"
    )
    parser.add_argument("--records", type=Path, help="a JSON line for each kill is written here")
    arguments = parser.parse_args()
    for number in SOFT:
        if signal.getsignal(number) == signal.SIG_IGN:  # as in a shell's background, which commands would inherit
            signal.signal(number, signal.default_int_handler if number == Signals.SIGINT else signal.SIG_DFL)
    with tempfile.TemporaryDirectory(prefix="kill-loop-") as temporary:
        folder = prepare(arguments.folder or Path(temporary))
        loop = Loop(folder, arguments.processes, random.Random(arguments.seed), arguments.soft)
        records = arguments.records or folder / "kills.jsonl"
        # After Ctrl-C what there is by then is reported.
        with records.open("w") as stream, contextlib.suppress(KeyboardInterrupt):
            loop.run(arguments.kills, stream)
    print(report(loop, arguments))
    sys.exit(1 if loop.problems else 0)


class Loop:
    """All runs of a call.

    Attributes:
        kills: with the precision of their run.
        num_runs: by precision.
        num_exact: likewise.
        problems: of all runs.
        seconds: from the first to the last.
    """

    def __init__(self, folder: Path, num_processes: int, draws: random.Random, soft: float) -> None:
        self.folder = folder
        self.num_processes = num_processes
        self.kills: list[tuple[str, Kill]] = []
        self.num_runs: Counter[str] = Counter()
        self.num_exact: Counter[str] = Counter()
        self.problems: list[str] = []
        self.seconds = 0.0
        self._draws = draws
        self._soft = soft
        self._unbroken: dict[str, tuple[Path, Timings]] = {}

    @property
    def num_sigkills(self) -> int:
        return sum(kill.wish.number == Signals.SIGKILL for _, kill in self.kills)

    def run(self, num_kills: int, records: TextIO) -> None:
        """Break one run after another, until there were so many SIGKILLs."""
        began = time.monotonic()
        while self.num_sigkills < num_kills:
            # A share of two processes in float16's small runs would be too small for batch norm.
            turns = TURNS if self.num_processes == 1 else TURNS[:1]
            precision = turns[self.num_runs.total() % len(turns)]
            run = self.folder / "runs" / f"broken-{self.num_runs.total()}"
            broken = self._break_one(precision, run)
            for kill in broken.kills:
                self.kills.append((precision, kill))
                records.write(json.dumps({"run": run.name, "precision": precision, **asdict(kill)}) + "\n")
            records.flush()
            self.problems += [f"{run.name}: {problem}" for problem in broken.problems]
            self.seconds = time.monotonic() - began
            print(
                f"{run.name} ({precision}): {len(broken.kills)} signals, {self.num_sigkills} SIGKILLs in all, "
                f"problems: {len(self.problems)}, {self.seconds / max(1, len(self.kills)):.1f} s each",
                file=sys.stderr,
                flush=True,
            )

    def _break_one(self, precision: str, run: Path) -> BrokenRun:
        desk = Desk(self.folder, [*PRECISIONS[precision], "--precision", precision], self.num_processes)
        if precision not in self._unbroken:
            whole = self.folder / "runs" / f"unbroken-{precision}"
            self._unbroken[precision] = whole, measure(desk, whole)
        whole, timings = self._unbroken[precision]
        self.num_runs[precision] += 1
        try:
            broken = break_run(desk, run, wishes(self._draws, timings, self.num_processes, self._soft))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            return BrokenRun(problems=[str(error)])
        try:
            assert_same_run(run, whole)
        except AssertionError as difference:
            broken.problems.append(f"is not the same: {difference}")
        else:
            self.num_exact[precision] += 1
        if broken.problems:
            print("\n".join(broken.problems), file=sys.stderr, flush=True)
        else:
            shutil.rmtree(run)
        return broken


def measure(desk: Desk, run: Path) -> Timings:
    """Train without a break, and time what is seen of it from outside."""
    command = desk.start(run)
    seconds: Counter[str] = Counter()
    times: Counter[str] = Counter()
    before, since = "", time.monotonic()
    while command.process.poll() is None:
        time.sleep(0.002)
        moment, now = command.moment.partition(":")[0], time.monotonic()
        seconds[before] += now - since  # type: ignore[assignment]
        times[moment] += moment != before
        before, since = moment, now
    if command.process.returncode:
        raise SystemExit(command.said)
    start, save, evaluation = (seconds[moment] / max(1, times[moment]) for moment in ("start", "save", "evaluation"))
    return Timings(start, save, evaluation, sum(seconds.values()) - seconds["start"])


def wishes(draws: random.Random, timings: Timings, num_processes: int, soft: float) -> Callable[[Command], Wish | None]:
    """Return what draws the next signal to a run, and its moment; now and then a late one, so that the run comes on."""
    num_drawn = 0

    def draw(command: Command) -> Wish | None:
        nonlocal num_drawn
        num_drawn += 1
        if num_drawn > MAX_KILLS_PER_RUN:
            return None
        weights = {
            "start": 3,
            "cleaning": 3 if command.left_before else 0,
            "save": 8,
            "saved": 2,
            "evaluation": 4,
            "steps": 5,
        }
        moment = draws.choices(list(weights), list(weights.values()))[0]
        longest = {"start": timings.start, "cleaning": 0.02, "save": timings.save, "saved": 0.01}
        delay = draws.uniform(0, longest.get(moment, timings.evaluation))
        if moment == "steps":
            delay = min(draws.expovariate(6 / timings.training), timings.training)
        number = draws.choice(SOFT) if draws.random() < soft else Signals.SIGKILL
        ranks = [f"rank {rank}" for rank in range(num_processes)] if num_processes > 1 else []
        second_after = None
        if number != Signals.SIGKILL and draws.random() < 0.4:
            # A wish that comes twice within two seconds is one to several processes, as torchrun sends signals on.
            second_after = draws.uniform(0.15, 0.6) if num_processes == 1 else draws.uniform(2.1, 2.5)
        whom = draws.choice(["command", "group", *ranks])
        return Wish(moment, delay, number, whom, second_after, count=draws.randint(1, 3))

    return draw


def report(loop: Loop, arguments: argparse.Namespace) -> str:
    """Return what is printed."""
    words = " ".join(f"--{name} {getattr(arguments, name)}" for name in ("kills", "processes", "seed"))
    kinds = ["SIGKILL", *(number.name for number in SOFT), "of these twice"]
    by_moment: Counter[tuple[str, str]] = Counter()
    by_whom: Counter[tuple[str, str]] = Counter()
    for _, kill in loop.kills:
        names = [kill.wish.number.name, *(["of these twice"] if kill.was_signalled_twice else [])]
        by_moment.update((kill.moment, name) for name in names)
        by_whom.update((kill.wish.whom, name) for name in names)
    runs = [[name, loop.num_runs[name], *_sums(loop, name), loop.num_exact[name]] for name in PRECISIONS]
    slowest = max((kill.seconds for _, kill in loop.kills if kill.wish.number != Signals.SIGKILL), default=0.0)
    where = (
        f"{processor()}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, torch "
        f"{version('torch')}; revision {revision()}; `python benchmarks/kill_loop.py {words}`, "
        f"{loop.seconds / 60:.0f} minutes."
    )
    parts = [
        where,
        table(["precision", "runs", *kinds, "resumed", "begun anew", "exact"], runs),
        "Where the run was when the signal came, by what its folder showed:",
        table(["moment", *kinds], _rows(by_moment, kinds)),
        "Whom it was sent to:",
        table(["whom", *kinds], _rows(by_whom, kinds)),
        f"The slowest stop that was asked for took {slowest:.1f} s. Problems: {len(loop.problems)}.",
        *loop.problems,
    ]
    return "\n\n".join(parts)


def _sums(loop: Loop, precision: str) -> list[int]:
    kills = [kill for each, kill in loop.kills if each == precision]
    kinds = Counter(kill.wish.number.name for kill in kills)
    twice = sum(kill.was_signalled_twice for kill in kills)
    anew = sum(kill.newest is None for kill in kills)
    return [*(kinds[number.name] for number in (Signals.SIGKILL, *SOFT)), twice, len(kills) - anew, anew]


def _rows(counts: Counter[tuple[str, str]], kinds: Sequence[str]) -> list[list[object]]:
    names = sorted({name for name, _ in counts})
    return [[name, *(counts[name, kind] for kind in kinds)] for name in names]


if __name__ == "__main__":
    main()

"""The real `dedetr train`, killed and told to stop at all moments, and resumed each time until it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.process_tree import Process, are_gone, family, send
from tests.trainer.test_many_processes import process_of_rank

EVERYTHING_ON = [
    "--model", "dela-detr", "--subset", "0.05", "--sample-repeat", "3", "--batch-size", "4", "--epochs", "3",
    "--accumulate", "2", "--ema", "0.9", "--workers", "2", "--short-side", "64", "--device", "cpu",
    "--set", "data.max_long_side=96", "--set", "model.hidden_dim=32", "--set", "model.num_decoder_layers=2",
    "--set", "model.feedforward_dim=32", "--set", "model.dropout=0.1", "--set", "schedule.warmup_steps=3",
    "--set", "run.log_every=3", "--set", "run.eval_every=1", "--set", "run.checkpoint_every=1",
    "--set", "run.checkpoint_minutes=0.005", "--set", "run.checkpoint_share=1",
]  # fmt: skip
"""27 steps and 3 evaluations of a small dela-detr with dropout, augmentation, repeated labels, averages and workers."""

_MAX_SECONDS = 600.0
"""That a command may take before it counts as hanging."""
_SECONDS_TO_GO = 60.0
"""That processes may live on when the one that started them is gone; ours look every five seconds."""
_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGHUP: 129}
_ANNOUNCED = re.compile(r"training \S+ on .*?, (\d+) epochs, (\d+) steps(?:, from step (\d+))? ->", re.DOTALL)
_CHECKPOINT = re.compile(r"step-(\d+)(?:\.old)?")
_BESIDE = re.compile(r"step-(\d+)\.(tmp|old)")


@dataclass(frozen=True)
class Wish:
    """What is to be done to a command, and when.

    Attributes:
        moment: "start", "cleaning" (of what an interrupted save has left), "steps", "evaluation", "save" (files of a
            checkpoint are being written) or "saved" (they are there, and what follows is under way).
        delay: seconds from the moment's beginning.
        number: of the signal.
        whom: "command", "group" (all of its processes), or "rank N".
        second_after: seconds to a second signal like it; None: there is none.
        count: at which save or evaluation of this command, from 1.
    """

    moment: str
    delay: float = 0.0
    number: signal.Signals = signal.SIGKILL
    whom: str = "command"
    second_after: float | None = None
    count: int = 1


@dataclass
class Kill:
    """What was done to a command, and what came of it.

    Attributes:
        wish: what was looked for.
        moment: where the run was, by what its folder showed when the signal had been sent.
        seconds: from then until the command, and all others that write to the run, were gone.
        exit_code: of the command.
        was_signalled_twice: whether it lived long enough for its second signal.
        newest: step of the newest whole checkpoint that it left; None: there is none.
        went_on: "from step N", "anew" (where there was no checkpoint), or "" where the next command did not say.
    """

    wish: Wish
    moment: str
    seconds: float = 0.0
    exit_code: int = 0
    was_signalled_twice: bool = False
    newest: int | None = None
    went_on: str = ""


@dataclass
class BrokenRun:
    """A run that was brought to its end.

    Attributes:
        kills: in their order.
        problems: what should not have been: a wrong exit code or place to go on from, a warning, something left over.
    """

    kills: list[Kill] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Desk:
    """Where commands are typed.

    Attributes:
        folder: holds `data/`, see `prepare`.
        flags: of `train`.
        num_processes: that train together.
    """

    folder: Path
    flags: Sequence[str]
    num_processes: int = 1

    def start(self, run: Path, how: str | None = None) -> Command:
        """Start `train` into a run folder; `how` is --resume or --overwrite."""
        words = ["train", "--out", str(run), *([] if how is None else [how])]
        if how != "--resume":
            words += self.flags
        if self.num_processes > 1:
            words += ["--nproc", str(self.num_processes)]
        return Command(words, self.folder, run)


def prepare(folder: Path) -> Path:
    """Write the demo set and its small subset into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for words in (["prepare-data"], ["subsample", "--rate", "0.05"]):
        subprocess.run([sys.executable, "-m", "dedetr_cli", *words], cwd=folder, check=True, capture_output=True)
    return folder


class Command:
    """A `dedetr train` that runs, and what can be seen of it from outside: its messages and its run's folder.

    Args:
        words: of the command line, from "train" on.
        folder: where it is typed.
        run: the run's folder.
        program: what Python runs with these words.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, run: Path, program: Sequence[str] = ("-m", "dedetr_cli")
    ) -> None:
        self.run = run
        self.checkpoints = run / "checkpoints"
        self.left_before = self._beside()
        self.began = time.monotonic()
        self._log = run.with_name(run.name + ".log")
        self._saves: set[str] = set()
        self._evaluations: set[int] = set()
        run.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            # A session of its own, so that signals can go to the whole group as a terminal's do.
            self.process = subprocess.Popen(
                [sys.executable, *program, *words],
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """All that it has said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def is_training(self) -> bool:
        """Whether it has said what it trains, and from which step on."""
        if "_announced" not in self.__dict__ and (found := _ANNOUNCED.search(self.said)):
            self._announced = [int(number or 0) for number in found.groups()]
        return "_announced" in self.__dict__

    @property
    def first_step(self) -> int:
        """The step that it goes on from."""
        return self._announced[2]

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self._announced[1]

    @property
    def is_evaluating(self) -> bool:
        """Whether an epoch's steps are done, and its evaluation is not."""
        num_epochs, num_steps, _ = self._announced
        kind, step = self.last_record
        return kind == "train" and step % (num_steps // num_epochs) == 0

    @property
    def last_record(self) -> tuple[str, int]:
        """Kind and step of the last whole line of `metrics.jsonl`; ("", 0) if there is none."""
        try:
            with (self.run / "metrics.jsonl").open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - 20_000))
                line = json.loads(stream.read().split(b"\n")[-2])
            return line["kind"], line["step"]
        except (FileNotFoundError, IndexError, ValueError):
            return "", 0

    @property
    def moment(self) -> str:
        """Where the run is, or was when it was killed, by what its folder shows."""
        beside, newest = self._beside(), newest_step(self.checkpoints)
        if not self.is_training:
            return "cleaning" if beside != self.left_before else "start"
        for name in beside:
            step, kind = name.removeprefix("step-").split(".")
            if kind == "old":
                return "save: replacing"
            return "save: writing" if newest is None or int(step) >= newest else "save: pruning"
        if newest is not None and (self.checkpoints / "last").resolve().name != f"step-{newest:08d}":
            return "save: pointers"
        return "evaluation" if self.is_evaluating else "step"

    def wait_for(self, wish: Wish) -> bool:
        """Wait until a moment has come and its delay has passed; return False if the command has ended before."""
        since: float | None = None
        while self.process.poll() is None:
            now = time.monotonic()
            if since is None and self._shows(wish):
                since = now
            if since is not None and now - since >= wish.delay:
                return True
            if now - self.began > _MAX_SECONDS:
                raise TimeoutError(f"the command hangs: {self.said}")
            time.sleep(0.001)
        return False

    def _shows(self, wish: Wish) -> bool:
        """Tell whether a moment has come, or cannot come any more."""
        if wish.moment == "start":
            return True
        if not self.is_training:
            return wish.moment == "cleaning" and self._beside() != self.left_before
        if wish.moment in ("save", "saved"):
            beside = self._beside().keys()
            self._saves |= beside
            return len(self._saves) >= wish.count and (wish.moment == "save" or not beside)
        if wish.moment == "evaluation":
            if self.is_evaluating:
                self._evaluations.add(self.last_record[1])
            return len(self._evaluations) >= wish.count
        return True

    def _beside(self) -> dict[str, list[str]]:
        """Return the folders beside finished checkpoints, and the names in each."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self.checkpoints.iterdir():
                if _BESIDE.fullmatch(path.name):
                    found[path.name] = sorted(entry.name for entry in path.iterdir())
        return found


def newest_step(checkpoints: Path) -> int | None:
    """Return the step of the newest finished checkpoint, set aside or not; None: there is none."""
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return max((int(found[1]) for name in names if (found := _CHECKPOINT.fullmatch(name))), default=None)


def break_run(desk: Desk, run: Path, next_wish: Callable[[Command], Wish | None]) -> BrokenRun:
    """Train into a new folder, do what is wished to the command, and resume it, until it ends by itself.

    Args:
        desk: where.
        run: the folder.
        next_wish: what to do to a command that has just been started; None: let it end.
    """
    broken = BrokenRun()
    everyone: set[Process] = set()
    how: str | None = None
    while True:
        command = desk.start(run, how)
        try:
            wish = next_wish(command)
            kill = _strike(command, wish, desk, everyone) if wish is not None and command.wait_for(wish) else None
            code = command.process.wait(_MAX_SECONDS)
        except BaseException:
            send(signal.SIGKILL, family(command.process.pid))
            raise
        _note_start(command, how, broken)
        if kill is None:
            broken.problems += [f"ended with {code}: {command.said}"] if code else []
            break
        kill.exit_code = code
        broken.problems += _faults(kill, command)
        broken.kills.append(kill)
        how = "--resume" if kill.newest is not None else "--overwrite"
    left = [path.name for path in command.checkpoints.iterdir() if "." in path.name]
    broken.problems += [f"left over: {left}"] if left else []
    broken.problems += [] if are_gone(everyone, _SECONDS_TO_GO) else ["processes were left behind"]
    return broken


def _strike(command: Command, wish: Wish, desk: Desk, everyone: set[Process]) -> Kill:
    """Send the signal, or both; return when nobody writes to the run any more."""
    pid = command.process.pid
    # Those of a killed agent cannot be found afterwards; else looking for them would only take time.
    members = family(pid) if desk.num_processes > 1 else set()
    whom = pid
    if wish.whom.startswith("rank"):
        with contextlib.suppress(LookupError):  # it has not been started yet
            whom = process_of_rank(int(wish.whom[-1]), pid)

    def signal_them() -> None:
        if wish.whom != "group":
            os.kill(whom, wish.number)
        elif desk.num_processes > 1:
            send(wish.number, members)
        else:
            os.killpg(pid, wish.number)

    sent = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        signal_them()
    if wish.number == signal.SIGKILL and not wish.whom.startswith("rank"):
        command.process.wait(_MAX_SECONDS)
    kill = Kill(wish, command.moment)
    members |= family(pid)
    everyone |= members
    if wish.second_after is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.process.wait(wish.second_after)
        if command.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal_them()
            kill.was_signalled_twice = True
    command.process.wait(_MAX_SECONDS)
    # Data workers of a process that is gone only read, and end when they notice; other ranks write.
    if desk.num_processes > 1 and not are_gone(members, _SECONDS_TO_GO):
        send(signal.SIGKILL, members)
    kill.seconds = time.monotonic() - sent
    kill.newest = newest_step(command.checkpoints)
    return kill


def _note_start(command: Command, how: str | None, broken: BrokenRun) -> None:
    """Write down where a command went on from, and what it should not have said."""
    said = command.said
    odd = [word for word in ("Traceback", "bug in dedetr", "damaged", "may differ") if word in said]
    broken.problems += [f"said {odd}: {said}"] if odd else []
    if not broken.kills:
        return
    before = broken.kills[-1]
    if how == "--overwrite":
        before.went_on = "anew"
    elif command.is_training:
        before.went_on = f"from step {command.first_step}"
        if command.first_step != before.newest:
            broken.problems.append(f"went on from step {command.first_step} and not {before.newest}: {said}")


def _faults(kill: Kill, command: Command) -> list[str]:
    """Return what was wrong with the way that a command ended."""
    wish, said = kill.wish, command.said
    what = f"{wish.number.name} to the {wish.whom} ({kill.moment}, exit code {kill.exit_code}, {kill.seconds:.1f} s)"
    if wish.number == signal.SIGKILL:
        expected = {-9} if not wish.whom.startswith("rank") else {-9, 0, 5}
        is_told = True
    else:
        expected = {_EXIT_CODES[wish.number]}
        # Before and after all training there is nothing to save; when it is saved, Python's own end is no longer ours.
        is_over = command.is_training and kill.newest == command.num_steps
        expected |= {0, -wish.number} if is_over else set()
        expected |= {-wish.number} if kill.was_signalled_twice else set()
        is_told = said.count("saved in") == 1 or kill.was_signalled_twice or kill.moment == "start" or is_over
    faults = [f"{what}: {said}"] if kill.exit_code not in expected or not is_told else []
    return faults + ([f"{what}: still there: {said}"] if kill.seconds > _SECONDS_TO_GO else [])

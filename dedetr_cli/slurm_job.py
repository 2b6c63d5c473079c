"""What runs in a job of `train --slurm`: this command as a child, which is told to save, and gone on with.

A child, because Slurm sends its warning to every process of a job step, data workers too, while submitit requeues in
the handler of that signal, whatever the process is doing. Here the warning is held back from all processes but the
first; the child hears one SIGTERM, and the requeueing begins when it has ended and all is on the disk.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dedetr_cli.output import print_note

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_STOPPED = (143, -signal.SIGTERM)
"""Exit codes of training that was told to stop; the second one before it could listen."""
_MAX_EMPTY_STOPS = 5
_POLL_SECONDS = 0.2


@dataclass
class TrainingJob:
    """A run of `dedetr train`, for submitit to pickle, call and requeue.

    Attributes:
        start: the command that begins the run.
        go_on: the command that resumes it.
        folder: where both are typed.
        run_folder: where the run is.
        earlier_run: `run_id` of the run that stood there before.
        empty_stops: how often in a row it was stopped before anything was saved.
    """

    start: Sequence[str]
    go_on: Sequence[str]
    folder: Path
    run_folder: Path
    earlier_run: str | None
    empty_stops: int = 0

    def __call__(self) -> None:
        """Train until the run ends, or is told to stop.

        Raises:
            SystemExit: the run has failed, or was stopped for good, with its exit code; or the job is requeued.
        """
        from submitit import JobEnvironment

        warning = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        submitits = signal.getsignal(warning)
        code, received = self._train(warning)
        if code in _STOPPED and callable(submitits) and self._shall_go_on(warning, received):
            self._requeue(lambda: submitits(warning, None))
        if code:
            code = 128 - code if code < 0 else code
            print_note(f"the run ended with exit code {code}: the job ends with it, and does not requeue itself")
            raise SystemExit(code)

    def checkpoint(self) -> DelayedSubmission | None:
        """Return what a requeued job does; None where one would be of no use. Called by submitit."""
        from submitit.helpers import DelayedSubmission

        self.empty_stops = 0 if self._has_saved() else self.empty_stops + 1
        if self.empty_stops >= _MAX_EMPTY_STOPS:
            print_note(f"the run was stopped {self.empty_stops} times before it could save anything: ask for more time")
            return None
        return DelayedSubmission(self)

    def _has_saved(self) -> bool:
        from core import api

        return api.has_saved(self.run_folder, self.earlier_run)

    def _train(self, warning: signal.Signals) -> tuple[int, set[signal.Signals]]:
        """Run the command; return its exit code, and the signals that came to this process."""
        received: set[signal.Signals] = set()

        def note(number: int, _frame: Any) -> None:
            received.add(signal.Signals(number))

        handled = {warning, signal.SIGTERM, signal.SIGINT}
        previous = {number: signal.signal(number, note) for number in handled}
        # A signal that is held back while a process is started is held back there, and in all that it starts.
        held_back = {warning} - {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
        try:
            child = subprocess.Popen(self.go_on if self._has_saved() else self.start, cwd=self.folder)  # noqa: S603
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held_back)
        is_told = False
        while True:
            try:
                code = child.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if received and not is_told and not _hears(received):
                    child.terminate()
                    is_told = True
        for number, handler in previous.items():
            signal.signal(number, handler)
        return code, received

    def _shall_go_on(self, warning: signal.Signals, received: set[signal.Signals]) -> bool:
        """Tell whether it was the scheduler that stopped the run, and not its owner."""
        if warning in received:
            return True
        return _is_slurm() and signal.SIGTERM in received and _is_running(os.environ.get("SLURM_JOB_ID", ""))

    def _requeue(self, requeue: Callable[[], object]) -> None:
        try:
            requeue()
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            print_note(f"the job could not be requeued: {error}")


def _is_slurm() -> bool:
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _hears(received: set[signal.Signals]) -> bool:
    """Tell whether the child has got one of these signals itself: Slurm sends them to every process of a step."""
    return _is_slurm() and not received.isdisjoint({signal.SIGTERM, signal.SIGINT})


def _is_running(job_id: str) -> bool:
    """Tell whether Slurm would let this job go on: one that was cancelled must stay so, one that is preempted not.

    Both hear SIGTERM, but the one that is preempted counts as running while it saves.
    """
    command = ["squeue", "--noheader", "--jobs", job_id, "--format", "%T"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False
    return said.strip() == "RUNNING"

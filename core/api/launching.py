"""Several processes of one command, by torchrun's elastic agent."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import SIGNAL_EXIT_CODES, DedetrError, Interrupted, MachineError, ProcessLost, UsageError
from core.torchrun import mark_as_launcher, started_by_torchrun

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_PROCESSES_PER_CORE = 4
"""More of them only take memory, half a gigabyte each, before they do anything."""
_SECONDS_TO_SAVE = "600"
"""How long processes that were asked to stop may finish their step and save, before they are killed."""


def launch(command: Sequence[str], num_processes: int) -> None:
    """Run a command in several processes on this machine, which find each other as under torchrun.

    The variables of this process's environment that tell the others so stay set. Nothing is started again: an error
    of one process ends the others.

    Args:
        command: program and arguments.
        num_processes: how many.

    Raises:
        UsageError: this process is one of several already, or fewer than one is wanted.
        Interrupted: a signal stopped the processes.
        DedetrError: the first error of a process, with its exit code.
    """
    if num_processes < 1:
        raise UsageError("at least one process is needed", where="--nproc", hint="--nproc 1")
    if started_by_torchrun():
        raise UsageError("torchrun decides on the number of processes", where="--nproc", hint="leave it out")
    num_cores = os.cpu_count() or 1
    if num_processes > _PROCESSES_PER_CORE * num_cores:
        raise UsageError(
            f"{num_processes} processes are too many for {num_cores} cores",
            where="--nproc",
            hint=f"--nproc {num_cores}",
        )
    mark_as_launcher()
    # Threads of all processes together fill the machine; torchrun itself would give each a single one.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores // num_processes)))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="dedetr-") as folder:
        try:
            _start(command, num_processes, folder)
        except ChildFailedError as error:
            raise _first_error(error.failures) from None
        except SignalException as stop:
            raise _stopped(stop.sigval, Path(folder)) from None


def _start(command: Sequence[str], num_processes: int, folder: str) -> None:
    """Start the processes, and wait for them."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # By variable, as the releases we support have no field for it yet.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SECONDS_TO_SAVE)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"dedetr-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )
    # What the agent has to say about its children, they say better themselves.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    elastic_launch(config, command[0])(*command[1:])


def _first_error(failures: Mapping[int, ProcessFailure]) -> DedetrError:
    """Return the first error of the processes as the error that it was.

    Errors that follow from the loss of another process come last, whenever they were written.
    """
    reports = [(_report_of(failure), failure) for failure in failures.values()]
    report, failure = min(reports, key=lambda pair: (pair[0].get("is_consequence", True), pair[0].get("time", 0.0)))
    if "exit_code" in report:
        return _error_of(report)
    if failure.exitcode in SIGNAL_EXIT_CODES.values():
        # It was stopped before it could report anything.
        return Interrupted(f"process {failure.local_rank} was stopped by a signal", exit_code=failure.exitcode)
    how = f"by {failure.signal_name()}" if failure.exitcode < 0 else f"with exit code {failure.exitcode}"
    return MachineError(
        f"process {failure.local_rank} ended {how}",
        where="--nproc",
        hint="the machine may be short of memory: use fewer processes, or more --accumulate",
    )


def _stopped(number: signal.Signals, folder: Path) -> DedetrError:
    """Return what the main process has reported after a signal to all: what it saved, if it came to that."""
    for file in folder.glob("**/0/error.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return _error_of(json.loads(file.read_text(encoding="utf-8"))["message"]["extraInfo"])
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    return Interrupted(f"stopped by {name}", exit_code=SIGNAL_EXIT_CODES.get(number, 143))


def _error_of(report: Mapping[str, Any]) -> DedetrError:
    error = DedetrError(report["text"], where=report["where"], hint=report["hint"], code=report["code"])
    error.exit_code = report["exit_code"]
    return error


def _report_of(failure: ProcessFailure) -> dict[str, Any]:
    message = failure.error_file_data.get("message")
    report = message.get("extraInfo", {}) if isinstance(message, dict) else {}
    if "exit_code" in report:
        return report
    # Killed from outside, say: nothing could be written.
    return {"is_consequence": failure.exitcode == -15, "time": float(failure.timestamp)}


def report_error(error: DedetrError) -> None:
    """Tell the agent that started this process why it ends; without one nothing is done."""
    file = os.environ.get(_ERROR_FILE)
    if not file:
        return
    report = {
        "timestamp": str(int(time.time())),
        "time": time.time(),
        "text": error.message,
        "where": error.where,
        "hint": error.hint,
        "exit_code": error.exit_code,
        "code": error.code,
        "is_consequence": isinstance(error, ProcessLost),
    }
    # Where it cannot be written the agent still sees the exit code.
    with contextlib.suppress(OSError):
        Path(file).write_text(json.dumps({"message": {"message": str(error), "extraInfo": report}}), encoding="utf-8")

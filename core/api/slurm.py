"""A training run as a job of Slurm, by submitit: what may be asked of Slurm, the run's folder, and the submission."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.api.common import LATEST, Say
from core.api.preparation import check_parts, check_run_folder, refuse_contradictions
from core.config.schema import Config
from core.errors import MachineError, UsageError, nearest
from core.files import machine_errors
from core.streams import send_nowhere

if TYPE_CHECKING:
    import submitit

LOGS = "slurm"
"""The folder of a run's jobs, in its own folder."""

_OURS = ("cluster", "max_num_timeout", "setup", "signal_delay_s", "time")
_SBATCH = (
    "account", "begin", "comment", "constraint", "cores_per_socket", "cpus_per_gpu", "cpus_per_task", "deadline",
    "dependency", "exclude", "exclusive", "gpu_bind", "gpu_freq", "gpus", "gpus_per_node", "gpus_per_socket",
    "gpus_per_task", "gres", "gres_flags", "hint", "job_name", "licenses", "mail_type", "mail_user", "mem", "mem_bind",
    "mem_per_cpu", "mem_per_gpu", "mincpus", "nice", "nodelist", "partition", "prefer", "priority", "profile", "qos",
    "reservation", "sockets_per_node", "switches", "threads_per_core", "tmp", "wckey",
)  # fmt: skip
"""Options of sbatch that go there as they are given."""
_SUBMITITS = {"timeout_min": "time", "mem_gb": "mem", "name": "job_name"}
"""What submitit calls them."""
_MANY = ("array", "nodes", "ntasks", "ntasks_per_node")
_ASK_FOR_GPUS = ("gpus", "gpus_per_node", "gpus_per_socket", "gpus_per_task", "gres")
_CLUSTERS = ("slurm", "local")
_PROGRAMS = ("sbatch", "srun", "scontrol", "squeue")
_NEEDS_SLURM = "type the command where sbatch can be typed, or try it here with --slurm-set cluster=local"


@dataclass(frozen=True)
class SlurmOptions:
    """What is asked of Slurm.

    Attributes:
        cluster: `slurm`, or `local`: submitit's own imitation on this machine, to try a job.
        minutes: time limit of the job; a run that takes longer is requeued.
        signal_delay_s: seconds before the limit at which the run is told to save.
        max_num_timeout: how often the limit may be reached.
        setup: lines of shell before the run.
        sbatch: other options of sbatch, by name.
    """

    cluster: str
    minutes: int
    signal_delay_s: int
    max_num_timeout: int
    setup: tuple[str, ...]
    sbatch: Mapping[str, str]


@dataclass(frozen=True)
class ReservedFolder:
    """The folder that a job will train in.

    Attributes:
        path: absolute.
        is_new: whether it was made for the job.
        earlier_run: `run_id` of the run that is to be replaced; None: there is none.
    """

    path: Path
    is_new: bool
    earlier_run: str | None


@dataclass(frozen=True)
class SubmittedJob:
    """A job that waits, or runs.

    Attributes:
        job_id: Slurm's, or of `local` the number of a process.
        cluster: see `SlurmOptions`.
        run_folder: where it trains.
        log: what it says.
    """

    job_id: str
    cluster: str
    run_folder: Path
    log: Path


def slurm_options(assignments: Sequence[str], config: Config, num_processes: int) -> SlurmOptions:
    """Return what `KEY=VALUE`s ask of Slurm, completed: a GPU for each process, cores for its data workers, a day.

    Raises:
        UsageError: there is no such key, or its value cannot be used.
    """
    given: dict[str, str] = {"cluster": "slurm", "time": "1-0", "signal_delay_s": "120", "max_num_timeout": "100"}
    setup = []
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        key = _known(name.strip().replace("-", "_"))
        if not equals or not value.strip() or not value.isprintable():
            raise UsageError(f"'{assignment}' is not KEY=VALUE", where="--slurm-set", hint="such as partition=gpu")
        if key == "setup":
            setup.append(value)
        else:
            given[key] = value.strip()
    cluster = given.pop("cluster")
    if cluster not in _CLUSTERS:
        raise UsageError(f"there is no cluster '{cluster}'", where="--slurm-set", hint=nearest(cluster, _CLUSTERS))
    minutes = _minutes(given.pop("time"))
    delay, timeouts = (_count(key, given.pop(key)) for key in ("signal_delay_s", "max_num_timeout"))
    if delay >= minutes * 60:
        raise UsageError(
            f"a warning {delay} seconds before the limit comes before the job, which has {minutes * 60}",
            where="--slurm-set",
            hint="a longer time, or a shorter signal_delay_s",
        )
    if config.run.device != "cpu" and not any(key in given for key in _ASK_FOR_GPUS):
        given["gpus_per_node"] = str(num_processes)
    if not any(key in given for key in ("cpus_per_gpu", "cpus_per_task")):
        given["cpus_per_task"] = str(num_processes * (1 + config.data.num_workers))
    sbatch = {key: value for key, value in sorted(given.items()) if value != "0"}
    return SlurmOptions(cluster, minutes, delay, timeouts, tuple(setup), sbatch)


def _known(key: str) -> str:
    if key in _MANY:
        raise UsageError(
            f"{key} is not for --slurm: a job is one task on one machine",
            where="--slurm-set",
            hint="--nproc N makes N processes; docs/training.md says how several machines train together",
        )
    if key not in (*_OURS, *_SBATCH):
        raise UsageError(
            f"there is no option '{key}'",
            where="--slurm-set",
            hint=nearest(_SUBMITITS.get(key, key), (*_OURS, *_SBATCH)),
        )
    return key


def _minutes(text: str) -> int:
    """Return a time as sbatch takes it, in minutes: `90`, `90:00`, `1:30:00`, `2-12`, `2-12:30`, `2-12:30:00`."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is not None:
        days, *rest = found.groups()
        numbers = [int(number) for number in rest if number is not None]
        if days is not None:
            units: tuple[int, ...] = (3600, 60, 1)
        else:
            units = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]
        seconds = int(days or 0) * 86400 + sum(number * unit for number, unit in zip(numbers, units, strict=False))
        if seconds > 0:
            return -(-seconds // 60)
    raise UsageError(f"'{text}' is no time", where="--slurm-set", hint="minutes, or as in time=1-12:00:00")


def _count(key: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"{key} is a whole number, not '{text}'", where="--slurm-set", hint=f"such as {key}=60")
    return int(text)


def require_slurm(cluster: str) -> None:
    """Check that a job can be submitted from this machine.

    Raises:
        MachineError: submitit is not installed, or Slurm's programs are not here.
    """
    if importlib.util.find_spec("submitit") is None:
        raise MachineError("submitit is not installed", where="--slurm", hint="python -m pip install 'dedetr[slurm]'")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if cluster == "slurm" and missing:
        raise MachineError(
            f"this machine has no {', '.join(missing)}: jobs cannot be submitted from here",
            where="--slurm",
            hint=_NEEDS_SLURM,
        )


def check_before_submission(
    config: Config, *, weights: Path | None, resume: bool, overwrite: bool, num_processes: int, on_note: Say
) -> None:
    """Check what can be checked at once, where there may be no GPU: settings, packages, weights' file, annotations.

    Raises:
        DedetrError: the one that the run would end with.
    """
    from core.trainer.checkpoint import find_model_file
    from core.trainer.inputs import read_training_inputs
    from core.trainer.loggers import require_loggers

    refuse_contradictions(resume=resume, weights=weights, overwrite=overwrite)
    check_parts(config, num_processes)
    require_loggers(config.run.loggers)
    if weights is not None:
        find_model_file(weights)
    read_training_inputs(config, on_note, check_files=False)


def reserve_run_folder(out: Path | None, model: str, *, resume: bool, overwrite: bool) -> ReservedFolder:
    """Decide where a job will train; a folder for a new run is made, an earlier run in it is left alone.

    Raises:
        UsageError: there is an earlier run in it, or something else.
        CheckpointError: there is no run to resume.
        MachineError: it cannot be written, or another run is using it.
    """
    from core.trainer.pointers import pointed_to
    from core.trainer.run_folder import RunFolder

    if out is not None and "%" in str(out.absolute()):
        raise UsageError("Slurm would replace the '%' in this name", where=str(out), hint="name another --out")
    check_run_folder(out, resume=resume, overwrite=overwrite)
    is_new = False
    if resume:
        with RunFolder.reopen(out or LATEST) as folder:
            path = folder.path
    elif out is not None and out.exists():
        path = pointed_to(out) or out
    else:
        with RunFolder.create(out, model) as folder:
            path = folder.path
        is_new = True
    return ReservedFolder(path.absolute(), is_new, None if resume else _run_id(path))


def has_saved(run_folder: Path, earlier_run: str | None) -> bool:
    """Tell whether the run that has begun in a folder since `reserve_run_folder` can be gone on with."""
    # `.tmp` is what a save that was cut off leaves. Damaged ones count: --resume says what is wrong with them.
    saved = (found for found in run_folder.glob("checkpoints/step-*") if found.suffix != ".tmp")
    return _run_id(run_folder) not in (None, earlier_run) and any(saved)


def _run_id(run_folder: Path) -> str | None:
    try:
        manifest = json.loads((run_folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(manifest.get("run_id")) if isinstance(manifest, dict) else None


def submit(job: Callable[[], None], reserved: ReservedFolder, options: SlurmOptions) -> SubmittedJob:
    """Hand a job to Slurm; it starts when there is room for it.

    Args:
        job: is pickled, and called in the job; submitit asks its method `checkpoint` for what to go on with.
        reserved: where it trains. Its logs go to `slurm/` there.
        options: what is asked of Slurm.

    Raises:
        MachineError: Slurm refuses it, or the folder cannot be written; a folder that was made for it is removed.
    """
    logs = reserved.path / LOGS
    made = reserved.path if reserved.is_new else None if logs.exists() else logs
    streams = _no_streams() if options.cluster == "local" else contextlib.nullcontext()
    try:
        with machine_errors(logs, "write the job"), streams:
            submitted = _executor(logs, reserved.path.name, options).submit(job)
    except BaseException as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, RuntimeError):  # submitit's own are
            raise _refusal(error) from error
        raise
    return SubmittedJob(submitted.job_id, options.cluster, reserved.path, submitted.paths.stdout)


def _refusal(error: RuntimeError) -> MachineError:
    said = " ".join(str(error).split()) or type(error).__name__
    about_gpus = re.search("gres|gpu", said, re.IGNORECASE)
    hint = "without GPUs: --slurm-set gpus_per_node=0 --device cpu" if about_gpus else "look at `sinfo`"
    return MachineError(f"the job is refused: {said}", where="sbatch", hint=hint)


def _executor(logs: Path, name: str, options: SlurmOptions) -> submitit.Executor:
    import submitit

    sbatch: dict[str, Any] = {"job_name": f"dedetr-{name}", "requeue": True}
    sbatch |= {key: True if value == "true" else value for key, value in options.sbatch.items()}
    asked: dict[str, Any] = {"stderr_to_stdout": True, "signal_delay_s": options.signal_delay_s}
    if options.setup:
        asked["setup"] = list(options.setup)
    if options.cluster == "local":
        executor: submitit.Executor = submitit.LocalExecutor(logs, max_num_timeout=options.max_num_timeout)
        gpus = str(sbatch.get("gpus_per_node", "0")).rpartition(":")[2]
        asked |= {"timeout_min": options.minutes, "gpus_per_node": _count("gpus_per_node", gpus)}
    else:
        executor = submitit.SlurmExecutor(logs, max_num_timeout=options.max_num_timeout)
        asked |= {"time": options.minutes, "wckey": None, "additional_parameters": sbatch}
        if "cpus_per_task" in sbatch:
            # Since Slurm 22.05 srun does not take it over from sbatch, and would give the run a single core.
            asked["srun_args"] = [f"--cpus-per-task={sbatch['cpus_per_task']}"]
    executor.update_parameters(**asked)
    return executor


@contextlib.contextmanager
def _no_streams() -> Iterator[None]:
    """Keep this process's streams from those that it starts: a reader of ours would wait until they end."""
    kept = [os.dup(number) for number in range(3)]
    try:
        send_nowhere(range(3))
        yield
    finally:
        for number, stream in enumerate(kept):
            os.dup2(stream, number)
            os.close(stream)

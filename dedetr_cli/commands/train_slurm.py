"""`dedetr train --slurm`: the run as a job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dedetr_cli.commands.train_options import words_of
from dedetr_cli.output import as_dict, print_json, print_line, print_note, table

if TYPE_CHECKING:
    from core.api import ResolvedConfig, SlurmOptions

_NOT_IN_THE_JOB = {"slurm", "slurm_set", "out", "resume", "overwrite", "as_json", "dry_run", "show_config"}


def describe_job(given: Mapping[str, Any], resolved: ResolvedConfig) -> dict[str, Any]:
    """Return what would be submitted; what is missing for it on this machine is only noted."""
    from core import api
    from core.errors import MachineError

    options = _options(given, resolved)
    try:
        api.require_slurm(options.cluster)
    except MachineError as error:
        print_note(f"the job could not be submitted from here: {error}")
    start, _ = _commands(given, given["out"])
    return {**as_dict(options), "command": ["dedetr", *start]}


def job_table(job: Mapping[str, Any]) -> Table:
    """Return what would be submitted."""
    setup = [("setup", line) for line in job["setup"]]
    limits = [(name, job[name]) for name in ("cluster", "minutes", "signal_delay_s", "max_num_timeout")]
    rows = [*limits, *job["sbatch"].items(), *setup, ("command", shlex.join(job["command"]))]
    return table("what would be submitted", ("option", "value"), rows)


def submit(given: Mapping[str, Any], resolved: ResolvedConfig) -> None:
    """Submit the run, when what can be checked at once is right, and say where it will be."""
    from core import api
    from dedetr_cli.slurm_job import TrainingJob

    config = resolved.config
    options = _options(given, resolved)
    api.require_slurm(options.cluster)
    how = {name: given[name] for name in ("resume", "overwrite")}
    api.check_before_submission(
        config, weights=given["weights"], num_processes=given["nproc"] or 1, on_note=print_note, **how
    )
    reserved = api.reserve_run_folder(given["out"], config.model.name, **how)
    start, go_on = _commands(given, reserved.path)
    program = [sys.executable, "-m", "dedetr_cli"]
    job = TrainingJob([*program, *start], [*program, *go_on], Path.cwd(), reserved.path, reserved.earlier_run)
    submitted = api.submit(job, reserved, options)
    if given["as_json"]:
        print_json("train", {**as_dict(submitted), "slurm": {**as_dict(options), "command": ["dedetr", *start]}})
        return
    print_note(f"the job will run: {shlex.join(['dedetr', *start])}")
    print_line(f"job {submitted.job_id}")
    print_line(f"log {submitted.log}")
    print_line(str(submitted.run_folder))


def _options(given: Mapping[str, Any], resolved: ResolvedConfig) -> SlurmOptions:
    from core import api

    return api.slurm_options(given["slurm_set"] or [], resolved.config, given["nproc"] or 1)


def _commands(given: Mapping[str, Any], run_folder: Path | None) -> tuple[list[str], list[str]]:
    """Return the commands that begin a run in a folder that stands ready, and that go on with it."""
    out = [] if run_folder is None else [f"--out={run_folder}"]
    words = words_of({name: value for name, value in given.items() if name not in _NOT_IN_THE_JOB})
    if given["resume"]:
        return (resumed := ["train", *words, *out, "--resume"]), resumed
    kept = words_of({name: given[name] for name in ("nproc", "debug")})
    # Only the job's own logs are in the folder, unless the user wants to replace a run: so it is to be overwritten.
    return ["train", *words, *out, "--overwrite"], ["train", *kept, *out, "--resume"]

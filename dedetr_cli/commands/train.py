"""`dedetr train`: flags to a checked configuration, then one run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from core.errors import DedetrError
from dedetr_cli.commands import train_options as options
from dedetr_cli.commands import train_slurm
from dedetr_cli.commands.train_options import settings_of
from dedetr_cli.commands.train_replay import replay as replay_step
from dedetr_cli.options import Debug, Device, Json, Set, Trust
from dedetr_cli.output import as_dict, print_json, print_line, print_note, stderr, stdout
from dedetr_cli.progress import make_reporter
from dedetr_cli.relaunch import run_in_processes
from dedetr_cli.settings import print_settings
from dedetr_cli.tables import evaluation_tables, plan_table, weights_table

if TYPE_CHECKING:
    from core.api import ResolvedConfig


def train(
    model: options.Model = None,
    data: options.Data = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.Lr = None,
    out: options.Out = None,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    set_: Set = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    show_config: options.ShowConfig = False,
    replay: options.Replay = None,
    device: Device = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
    subset: options.Subset = None,
    short_side: options.ShortSide = None,
    max_long_side: options.MaxLongSide = None,
    sample_repeat: options.SampleRepeat = None,
    workers: options.Workers = None,
    cache: options.Cache = None,
    backbone: options.Backbone = None,
    backbone_weights: options.BackboneWeights = None,
    download: options.Download = False,
    weights: options.Weights = None,
    num_queries: options.NumQueries = None,
    nms: options.Nms = None,
    nms_iou: options.NmsIou = None,
    repeat_label: options.RepeatLabel = None,
    repeat_ratio: options.RepeatRatio = None,
    two_stage_match: options.TwoStageMatch = None,
    steps: options.Steps = None,
    schedule: options.Schedule = None,
    lr_drop: options.LrDrop = None,
    warmup_steps: options.WarmupSteps = None,
    lr_backbone: options.LrBackbone = None,
    weight_decay: options.WeightDecay = None,
    accumulate: options.Accumulate = None,
    precision: options.Precision = None,
    ema: options.Ema = None,
    patience: options.Patience = None,
    freeze: options.Freeze = None,
    compile_: options.Compile = None,
    seed: options.Seed = None,
    nproc: options.Nproc = None,
    slurm: options.Slurm = False,
    slurm_set: options.SlurmSet = None,
    tensorboard: options.TensorBoard = False,
    wandb: options.Wandb = False,
    override: options.Override = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train a detector, and evaluate it as it learns.

    Examples:

      dedetr train --model dela-detr

      dedetr train --subset 0.05 --epochs 100 --dry-run

      dedetr train --preset small --backbone timm/tf_efficientnet_lite0 --backbone-weights lite0.safetensors

      dedetr train --nproc 8 --batch-size 32 --precision bfloat16
    """
    given = locals()  # all flags, by the names of the parameters
    from core import api

    if replay is not None:
        replay_step(given)
        return
    _check_combinations(given)
    _check_job(given)
    if (show_config or dry_run) and not api.is_main_process():
        return
    if show_config:
        print_settings(_resolve(given, print_note).settings(), as_json=as_json)
    elif dry_run:
        _plan(given)
    elif slurm:
        resolved = _resolve(given, print_note)
        with _origins_in_errors(resolved):
            train_slurm.submit(given, resolved)
    elif nproc is not None and nproc > 1 and not api.was_launched():
        _launch(given)
    else:
        _run(given)


def _check_combinations(given: Mapping[str, Any]) -> None:
    """Refuse flags that contradict each other."""
    from core import api

    foreign = [f"--{name}" for name in ("config", "preset", "weights") if given[name] is not None]
    if given["resume"] and foreign:
        raise typer.BadParameter("a run is resumed with its own settings", param_hint=", ".join(foreign))
    if given["epochs"] is not None and given["steps"] is not None:
        raise typer.BadParameter("a run is as long as one of them says", param_hint="--epochs, --steps")
    if given["override"] and not given["resume"]:
        raise typer.BadParameter("is for --resume", param_hint="--override")
    if given["lr_drop"] is not None and given["schedule"] not in (None, "step"):
        raise typer.BadParameter("is for --schedule step", param_hint="--lr-drop")
    if given["nproc"] is not None and api.started_by_torchrun() and not api.was_launched():
        raise typer.BadParameter("torchrun decides on the number of processes", param_hint="--nproc")


def _check_job(given: Mapping[str, Any]) -> None:
    """Refuse to submit what is running already, and options of a job where none is wanted."""
    from core import api

    if given["slurm_set"] and not given["slurm"]:
        raise typer.BadParameter("is for --slurm", param_hint="--slurm-set")
    if given["slurm"] and api.started_by_torchrun():
        raise typer.BadParameter("a job is submitted by one process, not by torchrun's", param_hint="--slurm")


def _resolve(given: Mapping[str, Any], on_note: Callable[[str], None]) -> ResolvedConfig:
    from core import api

    flags, assignments = settings_of(given), given["set_"] or []
    if given["resume"]:
        return api.resume_config(given["out"], flags=flags, assignments=assignments)
    return api.resolve_train_config(
        flags=flags,
        assignments=assignments,
        config_file=given["config"],
        preset=given["preset"],
        environment=os.environ,
        weights=given["weights"],
        trust=given["trust_checkpoint"],
        on_note=on_note,
    )


def _start(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a run begins, for a real and for a dry one."""
    started = {name: given[name] for name in ("out", "weights", "resume", "override", "overwrite", "download")}
    return started | {"trust": given["trust_checkpoint"]}


def _plan(given: Mapping[str, Any]) -> None:
    """Print what a run would do."""
    from core import api

    resolved = _resolve(given, print_note)
    job = train_slurm.describe_job(given, resolved) if given["slurm"] else None
    with _origins_in_errors(resolved):
        plan = api.plan_training(
            resolved.config,
            **_start(given),
            num_processes=given["nproc"],
            on_note=print_note,
            on_weights=lambda report: stderr().print(weights_table(report)),
        )
    if given["as_json"]:
        print_json("train", {"dry_run": True, **as_dict(plan), **({} if job is None else {"slurm": job})})
        return
    stdout().print(plan_table(plan))
    if job is not None:
        stdout().print(train_slurm.job_table(job))


def _launch(given: Mapping[str, Any]) -> None:
    """Run this very command in several processes, when what can be checked at once is right."""
    from core import api

    resolved = _resolve(given, lambda _: None)
    with _origins_in_errors(resolved):
        api.check_parts(resolved.config, given["nproc"])
    api.check_run_folder(given["out"], resume=given["resume"], overwrite=given["overwrite"])
    run_in_processes(given["nproc"])


def _run(given: Mapping[str, Any]) -> None:
    """Train; of several processes the main one speaks."""
    from core import api

    is_main = api.is_main_process()
    on_note = print_note if is_main else _ignore
    resolved = _resolve(given, on_note)
    with _origins_in_errors(resolved), make_reporter() if is_main else contextlib.nullcontext() as reporter:
        result = api.train(
            resolved.config,
            **_start(given),
            command=sys.argv,
            reporter=reporter,
            on_note=on_note,
            on_weights=lambda report: stderr().print(weights_table(report)),
        )
    if not is_main:
        return
    if given["as_json"]:
        print_json("train", as_dict(result))
        return
    for made in evaluation_tables(result.evaluation, f"{resolved.config.model.name}, last epoch"):
        stdout().print(made)
    print_line(str(result.run_folder))


@contextlib.contextmanager
def _origins_in_errors(resolved: ResolvedConfig) -> Iterator[None]:
    """Let an error about a setting say where it was set: by which flag, or in which line of which file."""
    try:
        yield
    except DedetrError as error:
        origin = resolved.origins.get(tuple((error.where or "").split(".")))
        if origin is not None:
            error.message, error.where = f"{error.where}: {error.message}", origin
        raise


def _ignore(_message: str) -> None:
    """Take a note, and tell nobody."""

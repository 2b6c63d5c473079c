"""The door to dedetr: one function a command, for the command line and for Python alike.

Nothing here prints; what a user should know goes to `on_note` or a reporter. PyTorch is loaded by the functions that
need it, not by importing this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.api.checking import CheckOutcome, check_data
from core.api.choices import (
    class_names,
    export_format_names,
    format_names,
    hint_for,
    model_names,
    preset_names,
    subset_names,
)
from core.api.configuration import resolve_train_config, resume_config
from core.api.data import prepare_data, subsample, subsample_folds
from core.api.detector import Prediction, TrainedDetector, load_detector
from core.api.doctor import Check, Diagnosis, diagnose
from core.api.dry_run import TrainingPlan, plan_training
from core.api.evaluation import EvaluationOutcome, evaluate
from core.api.launching import launch, report_error
from core.api.prediction import PredictionOutcome, predict
from core.api.preparation import check_parts, check_run_folder
from core.api.replaying import replay
from core.api.slurm import (
    SlurmOptions,
    SubmittedJob,
    check_before_submission,
    has_saved,
    require_slurm,
    reserve_run_folder,
    slurm_options,
    submit,
)
from core.api.training import train
from core.api.visualization import VisualizationOutcome, visualize
from core.config.layers import ResolvedConfig, Setting
from core.torchrun import is_main_process, started_by_torchrun, was_launched

if TYPE_CHECKING:
    from core.annotations.box_formats import BoxFormat
    from core.annotations.checks.report import CheckReport
    from core.annotations.checks.statistics import SplitStatistics
    from core.annotations.prepare_report import PrepareReport
    from core.annotations.subsets import FoldsReport, SubsetReport
    from core.evaluation.coco import ClassResult, EvaluationResult
    from core.models.weight_files import LoadReport
    from core.trainer.replay_report import Extent, ImageReplay, PartReplay, ReplayReport, Survey
    from core.trainer.reporter import CheckpointSaved, Evaluated, PredictionsDrawn, Reporter, RunStarted, StepDone

__all__ = [
    "BoxFormat",
    "Check",
    "CheckOutcome",
    "CheckReport",
    "CheckpointSaved",
    "ClassResult",
    "Diagnosis",
    "Evaluated",
    "EvaluationOutcome",
    "EvaluationResult",
    "Extent",
    "FoldsReport",
    "ImageReplay",
    "LoadReport",
    "PartReplay",
    "Prediction",
    "PredictionOutcome",
    "PredictionsDrawn",
    "PrepareReport",
    "ReplayReport",
    "Reporter",
    "ResolvedConfig",
    "RunStarted",
    "Setting",
    "SlurmOptions",
    "SplitStatistics",
    "StepDone",
    "SubmittedJob",
    "SubsetReport",
    "Survey",
    "TrainedDetector",
    "TrainingPlan",
    "VisualizationOutcome",
    "check_before_submission",
    "check_data",
    "check_parts",
    "check_run_folder",
    "class_names",
    "diagnose",
    "evaluate",
    "export_format_names",
    "format_names",
    "has_saved",
    "hint_for",
    "is_main_process",
    "launch",
    "load_detector",
    "model_names",
    "plan_training",
    "predict",
    "prepare_data",
    "preset_names",
    "replay",
    "report_error",
    "require_slurm",
    "reserve_run_folder",
    "resolve_train_config",
    "resume_config",
    "slurm_options",
    "started_by_torchrun",
    "submit",
    "subsample",
    "subsample_folds",
    "subset_names",
    "train",
    "visualize",
    "was_launched",
]

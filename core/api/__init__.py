"""The door to dedetr: one function a command, for the command line and for Python alike.

Nothing here prints; what a user should know goes to `on_note` or a reporter. PyTorch is loaded by the functions that
need it, not by importing this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.api.configuration import resolve_train_config, resume_config
from core.api.data import prepare_data, subsample
from core.api.evaluation import EvaluationOutcome, evaluate
from core.api.prediction import PredictionOutcome, predict
from core.api.training import train
from core.api.visualization import VisualizationOutcome, visualize

if TYPE_CHECKING:
    from core.evaluation.coco import EvaluationResult
    from core.trainer.reporter import CheckpointSaved, Evaluated, Reporter, RunStarted, StepDone

__all__ = [
    "CheckpointSaved",
    "Evaluated",
    "EvaluationOutcome",
    "EvaluationResult",
    "PredictionOutcome",
    "Reporter",
    "RunStarted",
    "StepDone",
    "VisualizationOutcome",
    "evaluate",
    "predict",
    "prepare_data",
    "resolve_train_config",
    "resume_config",
    "subsample",
    "train",
    "visualize",
]

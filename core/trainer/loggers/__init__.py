"""TensorBoard and Weights & Biases: what is said of a run besides its own files."""

from __future__ import annotations

from core.trainer.loggers.logging_reporter import LoggingReporter
from core.trainer.loggers.writer import LoggedRun, RunWriter, open_writers, require_loggers

__all__ = ["LoggedRun", "LoggingReporter", "RunWriter", "open_writers", "require_loggers"]

"""What a run tells its loggers; also a command, for tests of loggers in a process of their own, without torch."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from core.trainer.loggers import LoggedRun, LoggingReporter, open_writers
from core.trainer.reporter import Evaluated, PredictionsDrawn, StepDone

RUN_ID = "0123456789abcdef"


def step_done(step: int, loss: float, num_steps: int = 5) -> StepDone:
    return StepDone(1, step, num_steps, 1e-4, loss, {"loss_ce": 2 * loss}, 3.0, 7.0, 0.25, 60.0)


def evaluated(step: int, stats: Mapping[str, float | None]) -> Evaluated:
    return Evaluated(1, step, stats, is_best=True, minutes=1.0)


def drawn(step: int) -> PredictionsDrawn:
    return PredictionsDrawn(1, step, [("7_cat", Image.new("RGB", (40, 20), (255, 0, 0)))])


def logged_run(folder: Path, first_step: int = 0) -> LoggedRun:
    return LoggedRun(folder, RUN_ID, first_step, {"run": {"seed": 42}})


def main() -> None:
    """Log a run, and print what its user is warned of, one line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--num-steps", type=int, default=4)
    parser.add_argument("--kill-wandb-before", type=int, default=0)
    parser.add_argument("--leave-open", action="store_true")
    arguments = parser.parse_args()
    writers = open_writers(arguments.names, logged_run(arguments.folder), say)
    reporter = LoggingReporter(writers, log_every=1, warn=say)
    for step in range(1, arguments.num_steps + 1):
        if step == arguments.kill_wandb_before:
            kill_wandb()
        reporter.step_done(step_done(step, 1.0, arguments.num_steps))
    reporter.evaluated(evaluated(arguments.num_steps, {"AP": 0.25, "AP50": 0.5, "APs": None}))
    reporter.predictions_drawn(drawn(arguments.num_steps))
    if not arguments.leave_open:
        reporter.close()


def say(message: str) -> None:
    print(message, flush=True)


def kill_wandb() -> None:
    """Kill the process that wandb started for this one."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    services = [int(child) for child in children if "wandb" in Path(f"/proc/{child}/comm").read_text()]
    if not services:
        raise RuntimeError("wandb has started no process")
    for service in services:
        os.kill(service, signal.SIGKILL)
    time.sleep(0.5)


if __name__ == "__main__":
    main()

"""`dedetr`, and `python -m dedetr_cli`: loads next to nothing itself, so that signals are met from the start on."""

from __future__ import annotations

import sys

from core.errors import Interrupted
from core.torchrun import was_launched
from dedetr_cli.stopping import interrupted, signals_as_ctrl_c


def main() -> None:
    """Run the command line and exit with its code; see `dedetr_cli.app`."""
    try:
        with signals_as_ctrl_c(_tell):
            from dedetr_cli.app import main as run

            run()
    except KeyboardInterrupt:  # before or after all that the command itself looks after
        stop = interrupted()
        _tell(stop)
        sys.exit(stop.exit_code)


def _tell(stop: Interrupted) -> None:
    if not was_launched():
        sys.stderr.write(f"error: {stop}\n")


if __name__ == "__main__":
    main()

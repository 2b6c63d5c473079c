"""`dedetr`, and `python -m dedetr_cli`: loads next to nothing itself, so that Ctrl-C is met from the start on."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code; see `dedetr_cli.app`."""
    try:
        from dedetr_cli.app import main as run

        run()
    except KeyboardInterrupt:  # before or after all that the command itself looks after
        sys.stderr.write("error: stopped by Ctrl-C\n")
        sys.exit(130)


if __name__ == "__main__":
    main()

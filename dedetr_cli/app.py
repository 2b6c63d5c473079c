"""The command and its edge: every error becomes one line, a hint and an exit code; nothing else exits."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from typing import Annotated

import typer

from core.errors import DedetrError, Interrupted, ProcessLost, UsageError
from dedetr_cli import __version__
from dedetr_cli.commands import doctor, predict, prepare_data, subsample, train, visualize
from dedetr_cli.commands import eval as eval_command
from dedetr_cli.options import debug_wanted
from dedetr_cli.output import print_error, print_json_error, silence
from dedetr_cli.stopping import EXIT_CTRL_C, end_undisturbed, interrupted, signals_as_ctrl_c
from dedetr_cli.uncaught import explain

EXIT_USAGE = 2

# Older releases of Typer raise click's exceptions, newer ones those of a copy of their own: a public class of
# either has the right base.
_COMMAND_LINE_ERROR: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if issubclass(base, Exception) and base.__name__ == "ClickException"
)

app = typer.Typer(
    name="dedetr",
    help="Object detection for people who have few labelled images.",
    epilog="Start with: dedetr prepare-data && dedetr train && dedetr predict images/ --out vis/",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("prepare-data")(prepare_data.prepare_data)
app.command("subsample")(subsample.subsample)
app.command("train")(train.train)
app.command("eval")(eval_command.evaluate)
app.command("predict")(predict.predict)
app.command("visualize")(visualize.visualize)
app.command("doctor")(doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dedetr {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Object detection for people who have few labelled images."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line and exit with its code (see README, exit codes)."""
    # PyTorch's threads otherwise spin while they wait for each other. That gains 5 % on an idle machine; beside any
    # other busy process (our own data workers are such) it makes a training step ten times slower. Read once, when
    # PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Where processes do not find each other, C++ code would print its stack before our one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name that the terminal cannot show is no reason to fail
    with signals_as_ctrl_c(_tell_at_once):
        code = _run()
        end_undisturbed()
    sys.exit(code)


def _tell_at_once(stop: Interrupted) -> None:
    """Say what stopped the command while modules are loaded: our own may be those that are half there."""
    try:
        _tell(stop)
    except Exception:  # noqa: BLE001 (likewise)
        print_error(str(stop), None)
    with contextlib.suppress(OSError):
        sys.stdout.flush()


def _run() -> int:
    try:
        code = app(prog_name="dedetr", standalone_mode=False)
        sys.stdout.flush()
        if code == EXIT_CTRL_C:
            return _stopped()
        return code if isinstance(code, int) else 0
    except DedetrError as error:
        if debug_wanted():
            traceback.print_exc()
        _tell(error)
        from core import api

        # Of several processes that were asked to stop the first one says so. If another failed before, torchrun would
        # end the first one at once.
        return 0 if isinstance(error, Interrupted) and not api.is_main_process() else error.exit_code
    except _COMMAND_LINE_ERROR as error:
        text = getattr(error, "format_message", error.__str__)()
        _tell(UsageError(text, where=_flag_of(error), hint=_help_hint(error)), text)
        return EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except BrokenPipeError:
        silence(sys.stdout)  # the reader of our output went away (`| head`)
        return 0
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        silence(sys.stdout)  # likewise: Typer makes an exit code of its own of it
        return 0
    except Exception as error:  # noqa: BLE001 (the last edge)
        if debug_wanted():
            traceback.print_exc()
        explained = explain(error)
        _tell(explained)
        return explained.exit_code


def _stopped() -> int:
    """Say by which signal the command was stopped; return its exit code."""
    stop = interrupted()
    _tell(stop)
    return stop.exit_code


def _tell(error: DedetrError, text: str | None = None) -> None:
    """Print an error; of several processes that `train --nproc` started, the parent prints the first one's, once.

    Args:
        error: with --json also printed on stdout.
        text: what is said of it in place of its own text.
    """
    speaks, tells_json = True, True
    try:
        from core import api
    except Exception:  # noqa: BLE001, S110 (what keeps it from being loaded is what is told)
        pass
    else:
        error.hint = error.hint or api.hint_for(error.code)
        api.report_error(error)
        if api.was_launched():
            return
        # Of an error in one of torchrun's processes the others have nothing to tell.
        tells_json = api.is_main_process()
        speaks = tells_json or not isinstance(error, (Interrupted, ProcessLost))
    if speaks:
        print_error(text or str(error), error.hint, error.code)
    # The command line may be what is wrong with the command line, so its words are looked at as they are.
    words = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    if "--json" in words and tells_json:
        print_json_error(next((word for word in words if not word.startswith("-")), None), error)


def _flag_of(error: BaseException) -> str | None:
    """Return the flag or argument that a fault of the command line is about."""
    param = getattr(error, "param", None)
    names = [getattr(error, "option_name", None), *reversed(getattr(param, "opts", []))]
    return next((name for name in names if name), None)


def _help_hint(error: BaseException) -> str | None:
    context = getattr(error, "ctx", None)
    return f"see `{context.command_path} --help`" if context is not None else None

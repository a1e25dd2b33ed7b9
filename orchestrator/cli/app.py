"""The Typer application: command groups, and errors as one line with an exit code."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

import mcc_core
from mcc_core.errors import MCCError, UsageError
from orchestrator.cli import (
    compare,
    data,
    doctor,
    evaluate,
    export,
    predict,
    refine,
    report,
    reproduce,
    schema,
    storage,
    sweep,
    sweep_control,
    track,
    train,
    ui,
    weights,
)

app = typer.Typer(
    name="mcc",
    help="Train segmentation from image-level labels (Masked Collaborative Contrast), and sweep over it.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (
    sweep_control.stop,
    sweep_control.resume,
    sweep_control.retry,
    sweep_control.watch,
    sweep_control.logs,
    sweep_control.delete,
):
    sweep.app.command()(command)
_TRAIN, _RESULTS, _KEEP = "Train and sweep", "Results", "Settings and upkeep"
app.add_typer(data.app, name="data", rich_help_panel=_TRAIN)
app.command("train", rich_help_panel=_TRAIN)(train.train)
app.add_typer(sweep.app, name="sweep", rich_help_panel=_TRAIN)
app.command("reproduce", rich_help_panel=_TRAIN)(reproduce.reproduce)
app.command("predict", rich_help_panel=_RESULTS)(predict.predict)
app.command("evaluate", rich_help_panel=_RESULTS)(evaluate.evaluate)
app.command("refine", rich_help_panel=_RESULTS)(refine.refine)
app.add_typer(export.app, name="export", rich_help_panel=_RESULTS)
app.command("compare", rich_help_panel=_RESULTS)(compare.compare)
app.command("report", rich_help_panel=_RESULTS)(report.report)
app.command("ui", rich_help_panel=_RESULTS)(ui.ui)
app.command("doctor", rich_help_panel=_KEEP)(doctor.doctor)
app.add_typer(storage.app, name="storage", rich_help_panel=_KEEP)
app.add_typer(track.app, name="track", rich_help_panel=_KEEP)
app.command("import-weights", rich_help_panel=_KEEP)(weights.import_weights)
app.command("schema", rich_help_panel=_KEEP)(schema.schema)


@app.command(rich_help_panel=_KEEP)
def version() -> None:
    """Print the version."""
    print(mcc_core.__version__)


def _print_version(value: bool) -> None:
    if value:
        print(mcc_core.__version__)
        raise typer.Exit


_FIRST_STEPS = """Train segmentation from image-level labels, and sweep over it. Three next steps:

  mcc doctor        whether this machine has what is needed, and the fix where it has not
  mcc train tiny    a first network on generated pictures, in minutes; nothing to download
  mcc ui            its curves and pictures in the browser

All commands: mcc --help"""


@app.callback()
def _root(
    context: typer.Context,
    show: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(_FIRST_STEPS)


# What the parser raises for an unknown option, a missing argument, a value out of range.
_ParserError: type[Exception] = typer.BadParameter.__mro__[1]


def _encode_anything() -> None:
    """Characters that the output's encoding lacks are shown as `?`: a sparkline in ASCII, a file name that is no UTF-8.

    Otherwise they would end the command with a traceback, after its work is done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


# A path that a user gave, or the home, is no folder, is one, or may not be written or read.
_PATH_ERRORS = (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 a mistake of the caller's, 130 interrupted."""
    _encode_anything()
    try:
        code = app(standalone_mode=False)
    except MCCError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        code = 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        from orchestrator.storage.store import is_away, is_full
        from orchestrator.text import reason

        if isinstance(error, _PATH_ERRORS) and error.filename is not None:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            code = 2
        elif is_full(error) or is_away(error):
            print(f"error: {reason(error)}; mcc storage check says more", file=sys.stderr)
            code = 1
        else:
            raise
    except _ParserError as error:
        if text := error.format_message():  # type: ignore[attr-defined]  # empty: it printed the help
            print(f"error: {text}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(code or 0)

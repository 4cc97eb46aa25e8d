"""The command line; a verb a file. It prints, and turns errors into exit codes.

Exit codes: 0 ok, 1 regression or failed expectation, 2 usage or configuration, 3 environment or
measurement invalid, 4 incomplete (some runs failed), 5 baseline missing, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from bench.cli import (
    bench,
    calibrate,
    capacity,
    doctor,
    fit,
    listing,
    predict,
    replay,
    report,
    run,
    snapshot,
)
from bench.records import UserError

app = typer.Typer(
    name="zometer",
    help="Which method can fine-tune which model, at what memory, time and accuracy?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("list")(listing.show)
app.command("predict")(predict.predict)
app.command("fit")(fit.fit)
app.command("capacity")(capacity.capacity)
app.command("calibrate-model")(calibrate.calibrate_model)
app.command("report")(report.report)
app.command("replay")(replay.replay)
app.command("doctor")(doctor.doctor)
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command line; a user's error is one line without a traceback."""
    try:
        app()
    except UserError as error:
        print(f"zometer: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that is a file: never a traceback
        print(f"zometer: {error.strerror}: {error.filename}", file=sys.stderr)
        sys.exit(3)

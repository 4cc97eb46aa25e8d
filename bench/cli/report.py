"""``zometer report``: starts the report by name, since the harness never imports it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        Path, typer.Argument(help="A folder of records, of one suite or of several.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; RESULTS/report if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what it says as JSON.")] = False,
) -> None:
    """Make tables, plots and one offline HTML page from a folder of records."""
    folder = out or results / "report"
    made = importlib.import_module("reports.main").told(results, folder)
    print(json.dumps(made, indent=1) if as_json else f"Report: {Path(made['report']).resolve()}")

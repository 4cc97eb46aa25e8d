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
    as_json: Annotated[bool, typer.Option("--json", help="Print the files as JSON.")] = False,
) -> None:
    """Make tables, plots and one offline HTML page from a folder of records."""
    folder = out or results / "report"
    page = importlib.import_module("reports.main").build(results, folder)
    if as_json:
        files = sorted(str(p) for p in folder.rglob("*") if p.is_file())
        print(json.dumps({"page": str(page), "files": files}, indent=1))
    else:
        print(f"Report: {page.resolve()}")

"""``zometer list``: what there is to choose from."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench import models, suite, tasks, tuning
from zo_core import methods


class Kind(StrEnum):
    """What can be listed."""

    SUITES = "suites"
    METHODS = "methods"
    MODELS = "models"
    TASKS = "tasks"
    TUNINGS = "tunings"


def show(
    kind: Annotated[Kind | None, typer.Argument(help="One kind; all of them if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """List suites, methods, models, tasks and tunings."""
    found = {k.value: _entries(k) for k in Kind if kind in (None, k)}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, entries in found.items():
        table = Table(name, "", box=None, pad_edge=False)
        for key, title in entries.items():
            table.add_row(key, title)
        Console().print(table, "")


def _entries(kind: Kind) -> dict[str, str]:
    if kind is Kind.METHODS:
        return {name: f"{title} ({paper})" for name, (title, paper) in methods.titles().items()}
    named = {
        Kind.SUITES: suite.names,
        Kind.MODELS: models.names,
        Kind.TASKS: tasks.names,
        Kind.TUNINGS: tuning.names,
    }
    return named[kind]()

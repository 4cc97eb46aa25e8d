"""Runs that did not complete: a result like any other, with cause, phase and bytes."""

from __future__ import annotations

from bench.records import Failure
from reports import units
from reports.load import Tables
from reports.run import Run
from reports.table import Cell, Column, Table, missing, number, of_runs
from reports.theme import title_of

TITLE = "Runs that did not complete"
ORDER = 60
SCOPE = "page"
FOLD_ABOVE = 40

_COLUMNS = (
    Column("outcome", "Outcome"),
    Column("group", "Group"),
    Column("method", "Method"),
    Column("model", "Model"),
    Column("seed", "Seed", True),
    Column("cause", "Cause"),
    Column("phase", "Phase"),
    Column("steps_completed", "Steps done", True),
    Column("requested_bytes", "Asked for", True),
    Column("in_use_bytes", "In use when caught", True),
    Column("limit_bytes", "Limit", True),
    Column("reason", "Reason"),
    Column("key", "Run"),
)


def rows(tables: Tables) -> Table:
    """Return one row per run that did not complete; no column is left out."""
    made = (run for run in tables.entries if not run.is_predicted)
    ended = tuple(_row(run) for run in made if run.record.status != "completed")
    return Table(_COLUMNS, ended)


def _row(run: Run) -> tuple[Cell, ...]:
    record, failure, method = run.record, run.record.failure, run.spec.method
    status = record.status.replace("_", " ")
    limit = (failure.bytes_limit if failure else None) or record.spec.memory_limit_bytes
    return (
        of_runs(Cell(status, record.status, kind=f"status-{record.status}"), [record]),
        Cell(record.spec.group, record.spec.group),
        Cell(title_of(method), method, kind=f"method {method}"),
        Cell(record.spec.model, record.spec.model),
        Cell(str(record.spec.seed), record.spec.seed),
        _text(failure.cause if failure else None, "code"),
        _text(failure.phase if failure else None, "code"),
        _steps(failure),
        _bytes(failure.bytes_requested if failure else None),
        _bytes(failure.bytes_in_use if failure else None),
        _bytes(limit, "No limit was set."),
        Cell(record.reason, record.reason, detail=failure.log_tail if failure else ""),
        Cell(record.key, record.key, kind="code key"),
    )


def _text(text: str | None, kind: str) -> Cell:
    return Cell(text, text, kind=kind) if text else missing("Not known.")


def _steps(failure: Failure | None) -> Cell:
    done = failure.step if failure else None
    return missing("Not known.") if done is None else number(str(done), done, "exact")


def _bytes(n: int | None, why_not: str = "Not known.") -> Cell:
    return missing(why_not) if n is None else number(units.size(n), n, "exact", f"{n:,} bytes")

"""Every measured and predicted number of a section, metrics of new trackers included."""

from __future__ import annotations

from bench.records import Measurement
from reports import units
from reports.load import Tables
from reports.run import Run
from reports.table import Cell, Column, Table, missing, number, of_runs, table
from reports.theme import rank

TITLE = "All measurements"
ORDER = 30
SCOPE = "section"
FOLD_ABOVE = 0

_COLUMNS = (
    Column("series", "Method"),
    Column("model", "Model"),
    Column("seed", "Seed", True),
    Column("metric", "Metric"),
    Column("phase", "Phase"),
    Column("value", "Value", True),
    Column("unit", "Unit"),
    Column("source", "Read from"),
)


def rows(tables: Tables) -> Table:
    """Return one row per measurement and prediction of each run."""
    runs = sorted(tables.entries, key=lambda r: (r.facet, rank(r.spec.method), r.series))
    return table(
        _COLUMNS,
        [_row(r, m) for r in runs for m in (*r.record.measurements, *r.record.predicted)],
    )


def _row(run: Run, m: Measurement) -> tuple[Cell, ...]:
    value = missing(m.reason or "")
    if m.value is not None:
        text = units.quantity(m.value, m.unit)
        value = number(text, m.value, m.quality, f"{m.value:,} {m.unit}")
    return (
        of_runs(Cell(run.series, run.series, kind=f"method {run.spec.method}"), [run.record]),
        Cell(run.spec.model, run.spec.model),
        Cell(str(run.spec.seed), run.spec.seed),
        Cell(m.metric, m.metric, kind="code"),
        Cell(m.phase, m.phase, kind="code"),
        value,
        Cell(m.unit, m.unit),
        Cell(m.source, m.source),
    )

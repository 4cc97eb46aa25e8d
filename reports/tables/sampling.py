"""How often memory was read, as asked and as achieved: what a sampled peak may have missed."""

from __future__ import annotations

from statistics import median

from bench.records import Measurement
from reports import trace, units
from reports.load import Tables
from reports.run import Run
from reports.table import Cell, Column, Table, missing, number, of_runs, table

TITLE = "How it was measured: sampling"
ORDER = 81
SCOPE = "appendix"
FOLD_ABOVE = 12

_GAPS = ("p50", "p99", "max")
_COLUMNS = (
    Column("source", "Read from"),
    Column("asked_seconds", "Interval asked", True),
    Column("runs", "Runs", True),
    Column("gap_p50_seconds", "Gap p50 (median run)", True),
    Column("gap_p99_seconds", "Gap p99 (worst run)", True),
    Column("gap_max_seconds", "Longest gap", True),
    Column("worst", "Run with the longest gap"),
)
_NOTE = (
    "Time between two readings, from the trace of each run. A peak that came and went within a "
    "gap is not in a sampled number; exact numbers do not depend on it."
)


def rows(tables: Tables) -> Table:
    """Return one row per source and interval, over all runs that sampled."""
    several: dict[tuple[str, float | None], list[tuple[Run, dict[str, Measurement]]]] = {}
    for run in tables.entries:
        asked = _asked(run)
        for source, gaps in _gaps(run).items():
            several.setdefault((source, asked), []).append((run, gaps))
    ordered = sorted(several.items(), key=lambda item: (item[0][0], item[0][1] or 0))
    return table(_COLUMNS, [_row(source, asked, runs) for (source, asked), runs in ordered], _NOTE)


def _gaps(run: Run) -> dict[str, dict[str, Measurement]]:
    """Return the gaps of a run: source -> p50, p99, max."""
    found: dict[str, dict[str, Measurement]] = {}
    for m in run.record.measurements:
        for gap in _GAPS:
            if m.metric == f"sampling_gap_{gap}_seconds":
                where = f"{m.source}, {m.device}" if m.device else m.source
                found.setdefault(where, {})[gap] = m
    return found


def _asked(run: Run) -> float | None:
    """Return the interval that was asked for, from the file beside the record."""
    told = trace.sampler_facts(run.folder).get("interval_seconds") if run.folder else None
    return float(told) if isinstance(told, int | float) else None


def _row(
    source: str, asked: float | None, runs: list[tuple[Run, dict[str, Measurement]]]
) -> list[Cell]:
    longest = max(runs, key=lambda one: _value(one[1], "max") or 0)
    key = longest[0].record.key
    interval = missing("The sampler's own account (sampler.json) is not beside the records.")
    if asked is not None:
        interval = number(units.duration(asked), asked)
    return [
        Cell(source, source),
        interval,
        number(str(len(runs)), len(runs)),
        _gap(runs, "p50"),
        _gap(runs, "p99"),
        _gap(runs, "max"),
        of_runs(Cell(key, key, kind="code key"), [longest[0].record]),
    ]


def _gap(runs: list[tuple[Run, dict[str, Measurement]]], gap: str) -> Cell:
    values = [value for _, gaps in runs if (value := _value(gaps, gap)) is not None]
    if not values:
        reasons = [gaps[gap].reason for _, gaps in runs if gap in gaps]
        return missing(next(filter(None, reasons), "Not recorded."))
    value = median(values) if gap == "p50" else max(values)
    return number(units.duration(value), value)


def _value(gaps: dict[str, Measurement], gap: str) -> float | None:
    return gaps[gap].value if gap in gaps else None

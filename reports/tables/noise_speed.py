"""Noise added to a tensor by itself, beside a copy and a multiplication in place."""

from __future__ import annotations

from bench.records.step_speed import IN_PLACE, PassSpeed, StepSpeed
from reports import speed, units
from reports.load import Tables
from reports.table import Cell, Column, Table, number, table

TITLE = "One pass over a large tensor"
ORDER = 12
SCOPE = "section"
FOLD_ABOVE = 24

_NOTE = (
    "A tensor larger than the caches, all the case's threads; medians. Bytes are those read and "
    "written: once each. The multiplication goes over the same bytes as float32, whatever the "
    "dtype: it is the bandwidth that the limit of a step is computed from."
)
_COLUMNS = (
    Column("pass", "Pass"),
    Column("case", "Case"),
    Column("kernel", "Kernel"),
    Column("nanoseconds_per_element", "ns an element", True),
    Column("bytes_per_second", "Read and written", True),
    Column("bandwidth_fraction", "Of the bandwidth", True),
)


def rows(tables: Tables) -> Table:
    """Return one row per case and pass."""
    names = speed.labels(tables.speeds)
    cells = [_row(names[r.key], r, one) for r in tables.speeds for one in r.passes]
    return table(_COLUMNS, cells, _NOTE if cells else "")


def _row(case: str, record: StepSpeed, one: PassSpeed) -> tuple[Cell, ...]:
    ns, rate = one.nanoseconds_per_element, one.bytes_per_second
    most = next(p.bytes_per_second for p in record.passes if p.name == IN_PLACE)
    kernel = "torch" if one.name.endswith((")", "_")) else record.environment.noise_kernel
    tip = units.plural(len(one.seconds), "sample")
    return (
        Cell(one.name, one.name),
        Cell(case, case),
        Cell(kernel, kernel),
        number(units.digits(ns), ns, tip=tip),
        number(f"{units.digits(rate / 1e9)} GB/s", rate, tip=tip),
        number(units.percent(rate / most), rate / most),
    )

"""Predicted memory beside the real: methods down, families across."""

from __future__ import annotations

from bench.records.prediction_check import TRAINING
from reports import checks
from reports.load import Tables
from reports.table import Cell, Column, Table, number, table

TITLE = "Error of the predicted peak, by method and family"
ORDER = 7
SCOPE = "section"
FOLD_ABOVE = None

_NOTE = (
    "Traced minus real bytes at the peak of the run that is farthest off, and how many runs agree "
    "in every phase, differ as is known, differ, or could not be compared. Real bytes are those "
    "of torch's CPU allocator, as its profiler saw every allocation. Farthest phase: the largest "
    "error of any phase of any of these runs."
)
_GRID = (TRAINING, "linear_probe")


def rows(tables: Tables) -> Table:
    """Return one row per method, of the plain grid."""
    found = checks.frame(tables.checks)
    if found.empty or not set(_GRID) & set(found["variant"]):
        return Table((), ())
    found = found[found["variant"].isin(_GRID)]
    families = list(dict.fromkeys(found["family"]))
    cells = []
    for name in dict.fromkeys(found["method"]):
        part = found[found["method"] == name]
        across = [checks.cell(part[part["family"] == family]) for family in families]
        title = Cell(part["title"].iloc[0], name, kind=f"method {name}")
        count = number(str(len(part)), len(part))
        cells.append([title, count, *across, checks.farthest_phase(part), checks.peaks(part)])
    columns = [
        Column("method", "Method"),
        Column("runs", "Runs", True),
        *(Column(f"{family}_error_bytes", family, True) for family in families),
        Column("phase_error_bytes", "Farthest phase", True),
        Column("peak_bytes", "Real peaks", True),
    ]
    axes = ("dtype", "attention", "tuning")
    told = "; ".join(", ".join(dict.fromkeys(found[axis])) for axis in axes)
    return table(columns, cells, f"{_NOTE} Compared here: {told}.")

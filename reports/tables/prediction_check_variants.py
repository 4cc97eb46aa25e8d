"""Predicted memory beside the real, beyond the plain grid: variants down, families across."""

from __future__ import annotations

from bench.records.prediction_check import TRAINING
from reports import checks
from reports.load import Tables
from reports.table import Cell, Column, Table, number, table

TITLE = "Error of the predicted peak, of other runs"
ORDER = 8
SCOPE = "section"
FOLD_ABOVE = None

_NOTE = "As above, of runs beyond the grid: what they are stands in the second column."


def rows(tables: Tables) -> Table:
    """Return one row per variant."""
    found = checks.frame(tables.checks)
    if found.empty:
        return Table((), ())
    found = found[found["variant"] != TRAINING]
    titles = {name: title for check in tables.checks for name, title in check.variants.items()}
    families = list(dict.fromkeys(found["family"]))
    cells = []
    for name in (variant for variant in titles if variant in set(found["variant"])):
        part = found[found["variant"] == name]
        what = ", ".join(dict.fromkeys(part["title"]))
        across = [checks.cell(part[part["family"] == family]) for family in families]
        cells.append(
            [
                Cell(name, name),
                Cell(titles[name], titles[name], sub=what),
                number(str(len(part)), len(part)),
                *across,
                checks.farthest_phase(part),
                checks.peaks(part),
            ]
        )
    columns = [
        Column("variant", "Variant"),
        Column("what", "What it is"),
        Column("runs", "Runs", True),
        *(Column(f"{family}_error_bytes", family, True) for family in families),
        Column("phase_error_bytes", "Farthest phase", True),
        Column("peak_bytes", "Real peaks", True),
    ]
    return table(columns, cells, _NOTE)

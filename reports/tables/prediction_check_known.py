"""Where predicted and real memory differ: what is known, how often it is seen, and the rest."""

from __future__ import annotations

from bench.records.prediction_check import CheckCell, CheckedCell, KnownDifference, PredictionCheck
from reports import checks, units
from reports.load import Tables
from reports.table import Cell, Column, Table, number, table

TITLE = "Known differences, and others"
ORDER = 20
SCOPE = "section"
FOLD_ABOVE = None

_COLUMNS = (
    Column("why", "Why"),
    Column("where", "Where"),
    Column("seen", "Phases of runs", True),
    Column("least_bytes", "From", True),
    Column("most_bytes", "To", True),
)
_NOTE = (
    "Errors of phases, traced minus real, beyond 4 KiB. None of them is at the peak of a run "
    "unless the tables above say so."
)


def rows(tables: Tables) -> Table:
    """Return one row per known difference, and one per run that differs otherwise."""
    cells = []
    for check in tables.checks:
        cells += [
            _known(check, known) for known in check.known if any(map(known.of, _made(check)))
        ]
        cells += [_other(check, one) for one in check.cells if _is_other(check, one)]
    left_out = {what: why for check in tables.checks for what, why in check.left_out.items()}
    told = "; ".join(f"{what} ({why})" for what, why in left_out.items())
    return table(_COLUMNS, cells, f"{_NOTE} Not in the grid: {told}." if cells else "")


def _made(check: PredictionCheck) -> list[CheckCell]:
    return [one.cell for one in check.cells]


def _known(check: PredictionCheck, known: KnownDifference) -> list[Cell]:
    errors = [error for _, _, error in check.explained(known)]
    narrowed = (known.variants, known.methods, known.families, known.dtypes, known.attention,
                known.tunings)  # fmt: skip
    where = "; ".join([", ".join(known.phases), *(", ".join(n) for n in narrowed if n)])
    if not errors:
        gone = "not seen in these runs"
        return [Cell(known.why, known.why), Cell(where, where, sub=gone), number("0", 0),
                Cell(units.DASH), Cell(units.DASH)]  # fmt: skip
    low, high = min(errors), max(errors)
    return [
        Cell(known.why, known.why),
        Cell(where, where),
        number(str(len(errors)), len(errors)),
        number(checks.signed(low), low),
        number(checks.signed(high), high),
    ]


def _is_other(check: PredictionCheck, one: CheckedCell) -> bool:
    return check.verdict(one) in ("differs", "unable")


def _other(check: PredictionCheck, one: CheckedCell) -> list[Cell]:
    errors = check.unexplained(one)
    why = one.reason or "Not known: the prediction or this list is wrong."
    told = ", ".join(errors)
    where = f"{told}; {one.cell.name}" if told else one.cell.name
    ends = [Cell(units.DASH), Cell(units.DASH)]
    if errors:
        low, high = min(errors.values()), max(errors.values())
        ends = [number(checks.signed(low), low), number(checks.signed(high), high)]
    return [Cell(why, why, kind="alarm"), Cell(where, where), number("1", 1), *ends]

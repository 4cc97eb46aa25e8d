"""Pairs of methods on the same held-back examples, and whether their difference is noise."""

from __future__ import annotations

from reports import units
from reports.comparisons import LEVEL, MOST_ALL, Comparison, Contestant, compare
from reports.load import Tables
from reports.table import Cell, Column, Table, missing, number, of_runs, table

TITLE = "Paired comparisons"
ORDER = 10
SCOPE = "section"
FOLD_ABOVE = 10

_COLUMNS = (
    Column("facet", "Model"),
    Column("a", "A"),
    Column("b", "B"),
    Column("seeds", "Seeds"),
    Column("difference_points", "B \N{MINUS SIGN} A", True),
    Column("only_a_right", "Only A right", True),
    Column("only_b_right", "Only B right", True),
    Column("p", "p (exact)", True),
    Column("p_holm", "p (Holm)", True),
    Column("verdict", "Verdict"),
)
_NOTE = (
    "Exact McNemar test on the examples that only one of the two answers rightly; Holm's "
    f"adjustment for the number of pairs. Above {LEVEL} the two are not ranked. Of more "
    f"than {MOST_ALL} configurations each is compared with zero-shot and with MeZO alone."
)


def rows(tables: Tables) -> Table:
    """Return one row per pair of methods and seeds."""
    return table(_COLUMNS, [_row(c) for c in compare(tables)], _NOTE)


def _adjusted(c: Comparison) -> Cell:
    if c.invalid:
        return missing("A run of the pair is flagged invalid.")
    return number(units.probability(c.adjusted_p), c.adjusted_p, "exact")


def _contestant(one: Contestant, seed: int) -> Cell:
    cell = Cell(one.name, one.name, kind=f"method {one.method}")
    return of_runs(cell, [one.records[seed]])


def _row(c: Comparison) -> tuple[Cell, ...]:
    seeds = str(c.seed_b) if c.seed_a == c.seed_b else f"{c.seed_a}, {c.seed_b}"
    verdict = "within noise" if not c.real else f"{'B' if c.difference > 0 else 'A'} is better"
    verdict = "not ranked: invalid" if c.invalid else verdict
    return (
        Cell(c.facet, c.facet),
        _contestant(c.a, c.seed_a),
        _contestant(c.b, c.seed_b),
        Cell(seeds, seeds),
        number(units.points(c.difference), 100 * c.difference, "exact"),
        number(str(c.only_a), c.only_a, "exact"),
        number(str(c.only_b), c.only_b, "exact"),
        number(units.probability(c.p), c.p, "exact"),
        _adjusted(c),
        Cell(verdict, verdict, kind="noise" if not c.real else "real"),
    )

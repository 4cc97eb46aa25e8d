"""Doubts about measurements, as the harness raised them."""

from __future__ import annotations

from reports.load import Tables
from reports.table import Cell, Column, Table, table

TITLE = "Doubts about the measurements"
ORDER = 70
SCOPE = "page"
FOLD_ABOVE = 20

_SEVERITIES = ("invalid", "suspect", "info")
_COLUMNS = (
    Column("severity", "Severity"),
    Column("flag", "Flag"),
    Column("text", "What it says"),
    Column("runs", "Runs", True),
)


def rows(tables: Tables) -> Table:
    """Return one row per flag and text, gravest first, with the runs that carry it."""
    carried: dict[tuple[int, str, str], list[str]] = {}
    for run in tables.entries:
        for flag in run.record.flags:
            place = (_SEVERITIES.index(flag.severity), flag.name, flag.text)
            carried.setdefault(place, []).append(run.record.key)
    return table(_COLUMNS, [_row(*place, keys) for place, keys in sorted(carried.items())])


def _row(severity: int, name: str, text: str, keys: list[str]) -> tuple[Cell, ...]:
    word = _SEVERITIES[severity]
    return (
        Cell(word, word, kind=f"severity-{word}"),
        Cell(name, name, kind="code"),
        Cell(text, text),
        Cell(str(len(keys)), len(keys), tip=", ".join(keys), detail="\n".join(keys)),
    )

"""Doubts about measurements, as the harness raised them."""

from __future__ import annotations

from bench.records import Flag
from reports import units
from reports.doubts import SEVERITIES, SYMBOLS, WORDS
from reports.load import Tables
from reports.table import Cell, Column, Table, table

TITLE = "Doubts about the measurements"
ORDER = 70
SCOPE = "page"
FOLD_ABOVE = 20

_COLUMNS = (
    Column("severity", "Severity"),
    Column("flag", "Flag"),
    Column("text", "What it says"),
    Column("runs", "Runs", True),
)


def rows(tables: Tables) -> Table:
    """Return one row per flag, gravest first, with the runs that carry it and what each says."""
    carried: dict[tuple[int, str], dict[int, list[Flag]]] = {}
    for i, run in enumerate(tables.entries):
        for flag in run.record.flags:
            place = (SEVERITIES.index(flag.severity), flag.name)
            carried.setdefault(place, {}).setdefault(i, []).append(flag)
    ordered = sorted(carried.items(), key=lambda item: (item[0][0], -len(item[1]), item[0][1]))
    keys = [run.record.key for run in tables.entries]
    told = [_row(SEVERITIES[severity], name, by_run, keys)
            for (severity, name), by_run in ordered]  # fmt: skip
    note = "; ".join(f"{SYMBOLS[s]} {s}: {WORDS[s]}" for s in SEVERITIES) + "."
    return table(_COLUMNS, told, note)


def _row(
    severity: str, name: str, by_run: dict[int, list[Flag]], keys: list[str]
) -> tuple[Cell, ...]:
    texts = list(dict.fromkeys(f.text for flags in by_run.values() for f in flags))
    more = f"and {units.plural(len(texts) - 1, 'other wording')}" if texts[1:] else ""
    each = "\n".join(f"{keys[i]}: {'; '.join(f.text for f in flags)}"
                     for i, flags in by_run.items())  # fmt: skip
    return (
        Cell(f"{SYMBOLS[severity]} {severity}", severity, kind=f"severity-{severity}"),
        Cell(name, name, kind="code"),
        Cell(texts[0], texts[0], more),
        Cell(f"{len(by_run)} of {len(keys)}", len(by_run), detail=each),
    )

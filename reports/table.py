"""A table before it is HTML, Markdown or CSV: text for people beside raw values for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from bench.records import RunRecord
from reports import units
from reports.doubts import SEVERITIES, Doubt, doubts, grave

Raw = str | int | float | None

MARKS = {
    "exact": ("●", "counted, or read from a counter that misses nothing"),
    "sampled": ("◐", "polled: a peak between two samples is missed"),
    "estimated": ("◒", "derived under an assumption named in its source"),
    "predicted": ("○", "computed without running"),
    "unavailable": ("", "n/a, with its reason"),
}
"""Quality -> its mark and what the mark says."""


@dataclass(frozen=True)
class Cell:
    """One cell. ``text`` is for people; ``value`` is raw and goes to the CSV file."""

    text: str
    value: Raw = None
    sub: str = ""
    """A second, smaller line: the spread, or what belongs to the number."""
    quality: str = ""
    """A key of `MARKS` where the cell is a number that was measured or computed."""
    tip: str = ""
    """A short remark: where the number comes from, or why it is missing."""
    detail: str = ""
    """Long text that is unfolded on demand, such as the last lines of a log."""
    kind: str = ""
    """Look of the cell: ``status-<status>``, ``severity-<severity>``, ``method``, ``code``;
    ``alarm`` for what must be seen (its words say why)."""
    doubts: tuple[Doubt, ...] | None = None
    """What the runs of its row are flagged with; None where the row is not about runs."""

    @property
    def warnings(self) -> list[Doubt]:
        """Return what the cell is marked with: all doubts but remarks."""
        return grave(self.doubts or ())

    @property
    def mark(self) -> str:
        """Return the mark of its quality."""
        return MARKS[self.quality][0] if self.quality else ""

    @property
    def line(self) -> str:
        """Return the cell on one line, for Markdown."""
        sub = f"({self.sub})" if self.sub else ""
        symbols = "".join(dict.fromkeys(doubt.symbol for doubt in self.warnings))
        return " ".join(filter(None, (symbols, self.text, sub, self.mark)))

    @property
    def missing(self) -> bool:
        """Return whether there is no number."""
        return self.quality == "unavailable"


def number(
    text: str, value: Raw, quality: str = "exact", tip: str = "", sub: str = "", kind: str = ""
) -> Cell:
    """Return the cell of a number."""
    return Cell(text, value, sub, quality, tip, kind=kind)


def missing(reason: str) -> Cell:
    """Return the cell of a number that is not there; ``reason`` says why."""
    return Cell(units.NA, quality="unavailable", tip=reason)


def of_runs(cell: Cell, records: Iterable[RunRecord]) -> Cell:
    """Return the cell, marked with the flags of the runs that its row is about."""
    return replace(cell, doubts=doubts(list(records)))


@dataclass(frozen=True)
class Column:
    """A column: ``key`` heads it in CSV and carries the unit, ``heading`` is for people."""

    key: str
    heading: str
    numeric: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns, with a note on how to read them."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    reasons: tuple[str, ...] = ()
    """Why numbers are missing, once each."""
    absent: tuple[str, ...] = ()
    """Columns left out because no row has a number in them, with the reasons."""

    @property
    def footnotes(self) -> list[str]:
        """Return what the marks of its rows stand for, once each, gravest first."""
        several = [doubt for row in self.rows for cell in row for doubt in cell.warnings]
        texts: dict[tuple[str, str, str], list[str]] = {}
        for d in sorted(several, key=lambda d: (SEVERITIES.index(d.severity), d.name)):
            texts.setdefault((d.symbol, d.name, d.severity), []).extend(d.texts)
        return [f"{symbol} {name} ({severity}): {_few(told)}"
                for (symbol, name, severity), told in texts.items()]  # fmt: skip

    def frame(self) -> pd.DataFrame:
        """Return the raw values, one column per ``key``; of rows about runs, their flags too."""
        rows = [[cell.value for cell in row] for row in self.rows]
        made = pd.DataFrame(rows, columns=[column.key for column in self.columns], dtype=object)
        about = [[cell.doubts for cell in row if cell.doubts is not None] for row in self.rows]
        if any(about):
            made["flags"] = [_raw(several) for several in about]
        return made

    def csv(self) -> str:
        """Return the raw values as CSV; what is missing is empty."""
        return self.frame().to_csv(index=False, lineterminator="\n")

    def markdown(self) -> str:
        """Return the text as a Markdown table."""
        head = _line(column.heading for column in self.columns)
        rule = _line("---:" if column.numeric else "---" for column in self.columns)
        rows = [_line(cell.line for cell in row) for row in self.rows]
        return "\n".join([head, rule, *rows]) + "\n"


def table(columns: Iterable[Column], rows: Iterable[Iterable[Cell]], note: str = "") -> Table:
    """Return a table, its empty columns left out and named below it with their reasons.

    The reasons of single missing numbers are gathered below the table too.
    """
    given, cells = tuple(columns), [tuple(row) for row in rows]
    full = [i for i in range(len(given)) if not cells or not all(row[i].missing for row in cells)]
    absent: dict[str, list[str]] = {}
    for i, column in enumerate(given):
        if i not in full:
            absent.setdefault(_reason([row[i].tip for row in cells]), []).append(column.heading)
    kept = [tuple(row[i] for i in full) for row in cells]
    reasons = dict.fromkeys(cell.tip for row in kept for cell in row if cell.missing and cell.tip)
    left_out = tuple(f"{', '.join(heads)} ({why})" for why, heads in absent.items())
    chosen = tuple(given[i] for i in full)
    return Table(chosen, tuple(kept), note, tuple(reasons), left_out)


def _few(texts: list[str]) -> str:
    """Return the first of some texts, and how many others there are."""
    told = list(dict.fromkeys(texts))
    return told[0] if len(told) == 1 else f"{told[0]} (and {len(told) - 1} in other words)"


def _raw(several: list[tuple[Doubt, ...]]) -> str | None:
    told = dict.fromkeys(doubt.raw for doubts in several for doubt in doubts)
    return "; ".join(told) or None


def _reason(tips: list[str]) -> str:
    """Return the reason given most often, the first of equals."""
    return max(dict.fromkeys(tips), key=tips.count).rstrip(".")


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(safe(text) for text in texts) + " |"


def safe(text: str) -> str:
    """Return text that can't break out of a Markdown cell or smuggle HTML into it."""
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return text.replace("&", "&amp;").replace("<", "&lt;")

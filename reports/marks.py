"""Flags of runs in figures: the symbol of the gravest before a series, and a line that says it.

As in tables (``reports.doubts``): told by shape, before the name, so that a bar, a curve and a
panel's title carry the same one, and paper in black and white keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.records import RunRecord
from reports.doubts import SEVERITIES, SYMBOLS, WORDS, doubts, grave
from reports.load import Tables, from_runs
from reports.theme import Theme

_GRAVE = [s for s in SEVERITIES if s != "info"]
_NAMES = ("series", "panel", "line")
"""Columns of a frame whose words stand in the figure."""


def marked(tables: Tables) -> Tables:
    """Return the tables with a symbol before each series that has runs with grave flags."""
    alike: dict[tuple[str, str], list[RunRecord]] = {}
    for run in tables.entries:
        alike.setdefault((run.facet, run.series), []).append(run.record)
    marks = {key: _symbol(records) for key, records in alike.items()}
    if not any(marks.values()):
        return tables
    made = from_runs(
        replace(run, series=marks[run.facet, run.series] + run.series) for run in tables.entries
    )
    frames = ("entries", "runs", "evaluations", "steps", "measurements")
    return replace(tables, **{name: getattr(made, name) for name in frames})


def plain(series: str) -> str:
    """Return a series without its symbol.

    >>> plain("⚠ MeZO (lr 1e-06)")
    'MeZO (lr 1e-06)'

    """
    return series.lstrip("".join(SYMBOLS.values()) + " ")


def gravest(series: Iterable[str]) -> str:
    """Return the gravest symbol among some series, with a space after it; none: an empty text.

    >>> gravest(["MeZO", "⚠ MeZO (lr 1e-06)"])
    '⚠ '

    """
    seen = {one[:1] for one in series}
    return next((f"{SYMBOLS[s]} " for s in _GRAVE if SYMBOLS[s] in seen), "")


def explain(figure: Figure, data: pd.DataFrame, theme: Theme) -> None:
    """Say below a figure what the symbols in it mean."""
    texts = [t for name in _NAMES if name in data for t in data[name].dropna().unique()]
    seen = [s for s in _GRAVE if any(SYMBOLS[s] in str(text) for text in texts)]
    if not seen:
        return
    names = [f"{SYMBOLS[s]} {s}: {WORDS[s]}" for s in seen]
    figure.legend(
        [Line2D([], [], linestyle="none") for _ in seen], names, loc="outside lower left",
        frameon=False, handlelength=0, handletextpad=0, labelcolor=theme.paper("muted"),
        fontsize=9, borderaxespad=0.2,
    )  # fmt: skip


def _symbol(records: list[RunRecord]) -> str:
    told = grave(doubts(records))
    return f"{told[0].symbol} " if told else ""

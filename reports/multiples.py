"""Small multiples: a panel for each method where one panel of all would be a tangle.

Which methods belong together is not for a report to say: each has its panel, in the order of all
tables, with one and the same reference in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.canvas import Dash, dashes, facets, shorten
from reports.marks import gravest, plain
from reports.theme import Theme, by_method, title_of

MANY = 8
"""With more series than this in a panel, each method gets its own."""
REFERENCE = "mezo"
"""The method that every panel shows in grey: what the others build on."""
ACROSS = 4
_SMALL = 8


@dataclass(frozen=True)
class Tile:
    """One panel: the rows of a method on a model and task, and the reference."""

    panel: Axes
    facet: str
    method: str
    rows: pd.DataFrame
    reference: pd.DataFrame
    """Rows of the reference; none in its own panel, and where the facet has none."""
    styles: dict[str, Dash]
    """Line style of each series."""

    @property
    def reference_name(self) -> str:
        """The series that is the reference."""
        return str(self.reference["series"].iloc[0])


def is_many(data: pd.DataFrame, most: int = MANY) -> bool:
    """Return whether a panel would hold more than ``most`` series."""
    return int(data.groupby("facet")["series"].nunique().max()) > most


def tiles(data: pd.DataFrame, theme: Theme) -> tuple[Figure, list[Tile]]:
    """Return a figure with a panel for each facet and method of ``data``, in the usual order."""
    names = list(dict.fromkeys(data["facet"]))
    places = [(name, method) for name in names for method in _methods(data, name)]
    heads = [
        _mark(data, name, method) + title_of(method) + (f", {name}" if names[1:] else "")
        for name, method in places
    ]
    height = 2.35 if len(places) > ACROSS else 3.2
    figure, panels = facets(heads, theme, height=height, across=ACROSS)
    made = []
    for (name, method), panel in zip(places, panels, strict=True):
        here = data[data["facet"] == name]
        rows = here[here["method"] == method]
        styles = dashes(by_method(zip(rows["method"], rows["series"], strict=True)))
        made.append(Tile(panel, name, method, rows, _reference(here, method), styles))
        panel.set_title(panel.get_title(loc="left"), loc="left", fontsize=9.5, fontweight="bold")
        panel.tick_params(labelsize=_SMALL)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        panel.yaxis.set_major_locator(MaxNLocator(4))
    return figure, made


def _methods(data: pd.DataFrame, facet: str) -> list[str]:
    here = data.loc[data["facet"] == facet, "method"]
    return list(dict.fromkeys(method for method, _ in by_method((m, "") for m in here)))


def _mark(data: pd.DataFrame, facet: str, method: str) -> str:
    here = data[(data["facet"] == facet) & (data["method"] == method)]
    return gravest(here["series"])


def _reference(here: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the first series of the reference that has a mean; none for its own panel."""
    rows = here[here["method"] == REFERENCE] if method != REFERENCE else here.iloc[:0]
    with_mean = rows.loc[rows["kind"] == "mean", "series"]
    return rows[rows["series"] == with_mean.iloc[0]] if not with_mean.empty else rows.iloc[:0]


def key(panel: Axes, method: str, named: Mapping[str, Dash], theme: Theme) -> None:
    """Name the series below a panel that has several; its title names the method.

    ``named`` is the line style of each series.
    """
    if len(named) < 2:
        return
    colour = theme.colour(method)
    styles: list[Any] = list(named.values())  # matplotlib types them as literals
    lines = [Line2D([], [], color=colour, linestyle=style) for style in styles]
    title = title_of(method)
    names = [
        gravest([s]) + (shorten(plain(s).removeprefix(title).strip(" ()"), 46) or title)
        for s in named
    ]
    panel.legend(
        lines, names, loc="upper left", bbox_to_anchor=(-0.02, -0.13), frameon=False,
        fontsize=_SMALL, labelcolor=theme.paper("ink"), handlelength=2.4, borderaxespad=0.0,
        labelspacing=0.2,
    )  # fmt: skip


def cut(several: list[Tile], theme: Theme) -> None:
    """Give panels one y axis that suits most; where a curve leaves it, say how far it goes.

    The axis ends at one and a half times the height of the median curve, so that one that
    diverges does not flatten all others.
    """
    highs = sorted(float(tile.rows["value"].max()) for tile in several)
    low = min(float(tile.rows["value"].min()) for tile in several)
    top = min(highs[-1], low + 1.5 * (highs[len(highs) // 2] - low))
    top = top if math.isfinite(top) and top > low else low + 1
    for tile in several:
        tile.panel.set_ylim(low - 0.05 * (top - low), top + 0.05 * (top - low))
        if (high := float(tile.rows["value"].max())) > top:
            tile.panel.annotate(
                f"up to {high:.3g} ↑", (0.98, 0.97), xycoords="axes fraction", ha="right",
                va="top", fontsize=_SMALL, color=theme.paper("bad"),
            )  # fmt: skip

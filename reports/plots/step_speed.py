"""How far a step is above the forward passes it needs, beside the textbook and the limit."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from reports import speed
from reports.canvas import facets, legend, row_inches, shorten
from reports.load import Tables
from reports.theme import Theme

TITLE = "Time of a step over its forward passes"
CAPTION = (
    "1 is as fast as the forward passes alone; the axis is logarithmic in what lies above 1. "
    "Marker: median wall time over rounds, thick line: middle half, thin line: range. Hollow: "
    "median CPU time. Bar: the limit set by reading and writing the weights once a noise pass. "
    "Nearer to 1 than 1.005 is drawn at the left edge."
)
ORDER = 45
NEEDS: dict[str, int] = {}

_FLOOR = 0.005
_TICKS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 9.0, 19.0, 49.0, 99.0)


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per case and step."""
    return speed.frame(tables.speeds)


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return one panel per case, a row per step, on one axis."""
    names = list(dict.fromkeys(data["case"]))
    most = int(data.groupby("case").size().max())
    figure, panels = facets(names, theme, height=1.25 + row_inches(most) * max(most, 2))
    farthest = max(float(data["ratio_high"].max()), float(data["cpu_ratio_median"].max())) - 1
    for name, panel in zip(names, panels, strict=True):
        _panel(panel, data[data["case"] == name], max(farthest, 0.1), theme)
    legend(figure, theme)
    return figure


def _panel(panel: Axes, frame: pd.DataFrame, farthest: float, theme: Theme) -> None:
    for place, row in enumerate(frame.to_dict("records")):
        _row(panel, row, place, theme)
    panel.set_xscale("log")
    panel.set_xlim(_FLOOR * 0.85, farthest * 2.6)
    panel.xaxis.set_major_locator(FixedLocator([t for t in _TICKS if t <= farthest * 1.6]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{1 + x:.4g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_yticks(range(len(frame)), [shorten(s, 34) for s in frame["step"]])
    panel.tick_params(axis="y", labelcolor=theme.paper("ink"))
    panel.set_ylim(len(frame) - 0.45, -0.55)
    panel.grid(False, axis="y")
    panel.set_xlabel("Time of a step / its forward passes")


def _row(panel: Axes, row: Any, place: int, theme: Theme) -> None:
    """Draw one row of the frame; `Any` because pandas does not type the rows of a frame."""
    colour = theme.paper("bad") if row["textbook"] else theme.colour(row["method"])
    marker = "X" if row["textbook"] else theme.marker(row["method"])
    low, high = _above(row["ratio_low"]), _above(row["ratio_high"])
    first, third = _above(row["ratio_first_quartile"]), _above(row["ratio_third_quartile"])
    panel.plot([low, high], [place, place], color=colour, lw=1.2)
    panel.plot([first, third], [place, place], color=colour, lw=5, alpha=0.4)
    panel.plot(
        _above(row["cpu_ratio_median"]), place, color=colour, marker=marker, markersize=11,
        markerfacecolor="none", markeredgewidth=1.2, linestyle="none", zorder=4,
    )  # fmt: skip
    panel.plot(
        _above(row["ratio_median"]), place, color=colour, marker=marker, markersize=7.5, zorder=5
    )
    if not pd.isna(row["limit"]):
        panel.plot(
            _above(row["limit"]), place, color=theme.paper("ink"), marker="|", markersize=17,
            markeredgewidth=2, linestyle="none", zorder=6,
            label="limit: weights read and written once a pass",
        )  # fmt: skip
    panel.annotate(
        f"{row['ratio_median']:.3f}", (max(high, _above(row["cpu_ratio_median"])), place), (10, 0),
        va="center", textcoords="offset points", color=theme.paper("ink"), fontsize=9,
    )  # fmt: skip


def _above(ratio: float) -> float:
    return max(ratio - 1, _FLOOR)

"""Peak memory of each method, where there is one model size and so no line to draw."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from reports import units
from reports.canvas import even_bytes, facets, legend, row_inches, shorten
from reports.headline import BASES
from reports.load import Tables
from reports.memory import peaks
from reports.theme import Theme

TITLE = "Peak memory of each method"
CAPTION = (
    "Filled: measured; hollow: predicted without running; cross: ran out of memory, drawn at the "
    "limit (dash-dotted). Dotted: the weights alone. Whiskers: standard deviation over seeds."
)
ORDER = 15
NEEDS = {"runs.key": 1}


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per series and kind; none where several sizes make a better plot."""
    frame = peaks(tables)
    if frame["parameters"].nunique() > 1 or not frame["bytes"].notna().any():
        return frame.iloc[:0]
    if frame["model"].nunique() > 1:
        frame["series"] = frame["series"] + ", " + frame["model"]
    return frame


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return one panel per definition of memory, a bar per series."""
    bases = [basis for basis in BASES if (data["basis"] == basis).any()]
    most = data.loc[data["kind"] != "weights", "series"].nunique()
    height = 1.6 + row_inches(most) * max(most, 2)
    figure, panels = facets([BASES[basis] for basis in bases], theme, height=height)
    for basis, panel in zip(bases, panels, strict=True):
        _panel(panel, data[data["basis"] == basis], theme)
        panel.set_xlabel(BASES[basis].capitalize())
    legend(figure, theme)
    return figure


def _panel(panel: Axes, frame: pd.DataFrame, theme: Theme) -> None:
    bars = frame[frame["kind"] != "weights"]
    names = list(dict.fromkeys(bars["series"]))
    farthest = float(frame[["bytes", "limit_bytes"]].max().max())
    for row in bars.itertuples():
        _bar(panel, row, names.index(str(row.series)), 0.012 * farthest, theme)
    for weights in frame.loc[frame["kind"] == "weights", "bytes"].unique():
        panel.axvline(weights, color=theme.paper("muted"), linestyle=":", label="weights alone")
    for limit in frame["limit_bytes"].dropna().unique():
        panel.axvline(limit, color=theme.paper("bad"), linestyle="-.", lw=1.2, label="limit")
    panel.set_yticks(range(len(names)), [shorten(name, 34) for name in names])
    panel.tick_params(axis="y", labelcolor=theme.paper("ink"))
    panel.set_ylim(len(names) - 0.45, -0.55)
    panel.set_xlim(0, farthest * (1.36 if (bars["kind"] == "out of memory").any() else 1.18))
    panel.grid(False, axis="y")
    panel.xaxis.set_major_locator(FixedLocator(even_bytes(farthest)))
    panel.xaxis.set_major_formatter(FuncFormatter(units.tick_size))


def _bar(panel: Axes, row: Any, place: int, pad: float, theme: Theme) -> None:
    """Draw one row of the frame; `Any` because pandas does not type the rows of a frame."""
    colour, surface = theme.colour(row.method), theme.paper("surface")
    if row.kind == "predicted":
        panel.plot(
            row.bytes, place, marker="D", markersize=8, color=colour, markerfacecolor=surface,
            markeredgewidth=1.6, linestyle="none", zorder=5,
        )  # fmt: skip
        return
    if row.kind not in ("measured", "out of memory"):
        panel.text(pad, place, row.kind, va="center", color=theme.paper("bad"), fontsize=9)
        return
    refused = row.kind == "out of memory"
    panel.barh(
        place, row.bytes, height=0.52, color="none" if refused else colour, edgecolor=colour,
        linestyle="--" if refused else "-", xerr=None if pd.isna(row.sd_bytes) else row.sd_bytes,
        ecolor=theme.paper("ink"), capsize=3,
    )  # fmt: skip
    if refused:
        panel.plot(row.bytes, place, marker="X", markersize=11, color=colour, zorder=6,
                   markeredgecolor=surface, linestyle="none")  # fmt: skip
    end = row.bytes + (0 if pd.isna(row.sd_bytes) else row.sd_bytes) + pad * (2 if refused else 1)
    text = "out of memory" if refused else units.size(row.bytes)
    panel.text(end, place, text, va="center", color=theme.paper("ink"), fontsize=9)

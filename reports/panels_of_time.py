"""Panels with time on the x axis and memory on the y axis, phases behind the lines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from reports import units
from reports.canvas import even_bytes, facets, legend
from reports.theme import Theme
from reports.timeline import DEVICE, HOST

_STRIP = 0.045
"""Height of the strip of the engine's phases, as a share of the panel."""
_HEAD = 1.2
"""Height of the panel over that of its highest line: the names of the phases stand above."""
_LETTER = 0.018
"""Share of the panel's width that a phase must have for each letter of its name."""
_FAR = 2.5
"""A limit so many times as high as the highest reading is told, not drawn."""
_SMALL = 8


def draw(data: pd.DataFrame, theme: Theme, small: bool = False) -> Figure:
    """Return a panel for each run in a frame of `reports.timeline`."""
    runs = [rows for _, rows in data.groupby("run", sort=False)]
    heads = [str(rows["panel"].iloc[0]) for rows in runs]
    across = 4 if small else 3
    figure, panels = facets(heads, theme, height=2.2 if small else 3.2, across=across)
    tops = {facet: _top(rows) for facet, rows in data.groupby("facet")}
    for panel, head, rows in zip(panels, heads, runs, strict=True):
        panel.set_title(head, loc="left", fontsize=9.5, color=theme.paper("ink"))
        _panel(panel, rows, tops[str(rows["facet"].iloc[0])], theme)
    figure.supxlabel("Seconds since the run began", fontsize=10, color=theme.paper("muted"))
    legend(figure, theme)
    return figure


@dataclass(frozen=True)
class _Item:
    """A row of the frame that is no reading."""

    name: str
    begin: float
    end: float
    bytes: float


def _items(rows: pd.DataFrame, kind: str) -> list[_Item]:
    rows = rows[rows["kind"] == kind]
    numbers = rows[["begin_seconds", "end_seconds", "bytes"]].astype(float)
    values = zip(rows["name"], *(numbers[column] for column in numbers), strict=True)
    return [_Item(str(name), begin, end, size) for name, begin, end, size in values]


def _panel(panel: Axes, rows: pd.DataFrame, top: float, theme: Theme) -> None:
    end = float(rows[["begin_seconds", "end_seconds"]].astype(float).max().max())
    panel.set_xlim(0, end or 1.0)
    panel.set_ylim(0, _HEAD * top)
    for phase in _items(rows, "phase"):
        _band(panel, phase, end, theme)
    _strip(panel, rows[rows["kind"] == "inner"], theme)
    lines = rows[rows["kind"] == "line"]
    for (name, _), line in lines.groupby(["name", "device"], sort=False):
        look = _look(str(name), str(rows["method"].iloc[0]), theme)
        panel.plot(line["begin_seconds"].astype(float), line["bytes"], label=str(name), **look)
    _levels(panel, rows, _HEAD * top, theme)
    _out_of_memory(panel, rows, theme)
    panel.grid(False, axis="x")
    panel.tick_params(labelsize=_SMALL)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.yaxis.set_major_locator(FixedLocator(even_bytes(_HEAD * top, most=4)))
    panel.yaxis.set_major_formatter(FuncFormatter(units.tick_size))


def _band(panel: Axes, phase: _Item, end: float, theme: Theme) -> None:
    """Shade one phase, and name it where there is room."""
    panel.axvspan(phase.begin, phase.end, color=theme.phase(phase.name), alpha=0.13, lw=0,
                  zorder=0, label=phase.name)  # fmt: skip
    if phase.end - phase.begin > _LETTER * len(phase.name) * end:
        panel.text((phase.begin + phase.end) / 2, 0.985, phase.name, ha="center", va="top",
                   transform=panel.get_xaxis_transform(), fontsize=_SMALL,
                   color=theme.paper("muted"))  # fmt: skip


def _strip(panel: Axes, inner: pd.DataFrame, theme: Theme) -> None:
    """Draw the engine's phases as one bar of blocks along the foot of the panel."""
    for name, several in inner.groupby("name", sort=False):
        begins = several["begin_seconds"].astype(float)
        lengths = several["end_seconds"].astype(float) - begins
        panel.broken_barh(
            list(zip(begins, lengths, strict=True)), (0, _STRIP), color=theme.phase(str(name)),
            transform=panel.get_xaxis_transform(), lw=0, zorder=3, label=str(name),
        )  # fmt: skip


def _look(name: str, method: str, theme: Theme) -> dict[str, Any]:
    """Return the look of a line: on a device its lines come first, and the host's steps back."""
    if name == DEVICE:
        return {"color": theme.colour(method), "lw": 1.6, "zorder": 5}
    if name == HOST:
        return {"color": theme.paper("ink"), "lw": 1.2, "zorder": 4}
    return {"color": theme.colour(method), "lw": 1.2, "zorder": 5, "linestyle": (0, (5, 2))}


def _levels(panel: Axes, rows: pd.DataFrame, high: float, theme: Theme) -> None:
    for peak in _items(rows, "peak"):
        panel.hlines(peak.bytes, peak.begin, peak.end, color=theme.paper("warn"), lw=1.1,
                     zorder=6, label=peak.name)  # fmt: skip
    for level in _items(rows, "baseline"):
        panel.axhline(level.bytes, color=theme.paper("muted"), lw=1, linestyle=":", zorder=2,
                      label=level.name)  # fmt: skip
    for level in _items(rows, "limit"):
        if level.bytes <= high:
            panel.axhline(level.bytes, color=theme.paper("bad"), lw=1.2, linestyle="--",
                          zorder=2, label=level.name)  # fmt: skip
        else:
            panel.text(0.99, 0.9, f"limit {units.size(level.bytes)} ↑", ha="right", va="top",
                       transform=panel.transAxes, fontsize=_SMALL,
                       color=theme.paper("bad"))  # fmt: skip


def _out_of_memory(panel: Axes, rows: pd.DataFrame, theme: Theme) -> None:
    for mark in _items(rows, "out of memory"):
        height = 0.0 if math.isnan(mark.bytes) else mark.bytes
        panel.plot(mark.begin, height, marker="X", markersize=9, linestyle="none",
                   color=theme.paper("bad"), markeredgecolor=theme.paper("surface"),
                   label=mark.name, clip_on=False, zorder=7)  # fmt: skip


def _top(rows: pd.DataFrame) -> float:
    """Return how high the panels of a model must go: its readings, and limits that are near."""
    seen = rows.loc[rows["kind"].isin(["line", "peak"]), "bytes"].astype(float)
    highest = float(seen.max()) or 1.0
    near = [limit.bytes for limit in _items(rows, "limit") if limit.bytes <= _FAR * highest]
    return max([highest, *near])

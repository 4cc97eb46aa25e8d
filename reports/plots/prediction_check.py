"""How far predicted memory is from the real, run by run."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.records.prediction_check import TOLERANCE_BYTES
from reports import checks
from reports.canvas import facets, legend, row_inches, shorten
from reports.load import Tables
from reports.theme import Theme
from reports.units import DASH, tick_size

TITLE = "Predicted minus real peak"
CAPTION = (
    "A marker is a run: the error of its peak. Bars reach to the phases that are farthest off, "
    "which are no peaks of a run. The band is 4 KiB, within which both count as equal; beyond it "
    "the axis is logarithmic. At the right: the real peaks of these runs in MiB."
)
ORDER = 46
NEEDS: dict[str, int] = {}

_TICKS = tuple(float(TOLERANCE_BYTES * 256**power) for power in range(4))
_COLOURS = {"agrees": "accent", "known": "warn", "differs": "bad"}
_WORDS = {"agrees": "all phases agree", "known": "differs as is known",
          "differs": "differs"}  # fmt: skip


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per run that was compared."""
    found = checks.frame(tables.checks)
    return found if found.empty else found[found["verdict"] != "unable"].reset_index(drop=True)


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return one panel per family, a row per method, on one axis."""
    names = list(dict.fromkeys(data["family"]))
    methods = list(dict.fromkeys(data["method"]))
    height = 1.3 + row_inches(len(methods)) * max(len(methods), 2)
    figure, panels = facets(names, theme, height=height, across=3)
    errors = data[["error_bytes", "phase_error_bytes"]].abs().to_numpy()
    farthest = max(float(errors.max()), 10.0 * TOLERANCE_BYTES)
    titles = dict(zip(data["method"], data["title"], strict=True))
    for number, (name, panel) in enumerate(zip(names, panels, strict=True)):
        part = data[data["family"] == name]
        for place, method in enumerate(methods):
            _row(panel, part[part["method"] == method], place, theme)
        _axes(panel, farthest, theme)
        labels = [shorten(titles[m], 30) if not number else "" for m in methods]
        panel.set_yticks(range(len(methods)), labels)
        panel.tick_params(axis="y", labelcolor=theme.paper("ink"))
        panel.set_ylim(len(methods) - 0.45, -0.55)
    legend(figure, theme)
    return figure


def _row(panel: Axes, part: pd.DataFrame, place: int, theme: Theme) -> None:
    """Draw the runs of a method, those that differ above the others."""
    for verdict, name in _COLOURS.items():
        some = part[part["verdict"] == verdict]
        if some.empty:
            continue
        colour = theme.paper(name)
        _reach(panel, some["phase_error_bytes"], place, colour)
        panel.plot(
            some["error_bytes"], [place] * len(some), color=colour, marker="o", markersize=6,
            linestyle="none", label=_WORDS[verdict], zorder=4,
        )  # fmt: skip
    if len(part):
        low, high = part["peak_bytes"].min(), part["peak_bytes"].max()
        panel.annotate(
            f"{checks.mib(low)}{DASH}{checks.mib(high)}", (1, place), (4, 0), va="center",
            xycoords=("axes fraction", "data"), textcoords="offset points",
            color=theme.paper("muted"), fontsize=8, annotation_clip=False,
        )  # fmt: skip


def _reach(panel: Axes, errors: Any, place: int, colour: str) -> None:
    """Draw a bar from 0 to the phases that are farthest off; `Any`: pandas types no column."""
    for edge in (float(errors.min()), float(errors.max())):
        if abs(edge) > TOLERANCE_BYTES:
            panel.plot([0, edge], [place, place], color=colour, lw=4, alpha=0.35, zorder=3,
                       solid_capstyle="butt")  # fmt: skip


def _axes(panel: Axes, farthest: float, theme: Theme) -> None:
    panel.axvspan(-TOLERANCE_BYTES, TOLERANCE_BYTES, color=theme.paper("good"), alpha=0.13, lw=0)
    panel.set_xscale("symlog", linthresh=TOLERANCE_BYTES, linscale=1)
    panel.set_xlim(-3 * farthest, 3 * farthest)
    ends = [end for end in _TICKS if end <= 2 * farthest]
    shown = [0.0, *ends, *(-end for end in ends)]
    panel.xaxis.set_major_locator(FixedLocator(sorted(shown)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(_tick))
    panel.grid(False, axis="y")
    panel.set_xlabel("Predicted minus real bytes")


def _tick(value: float, _: object = None) -> str:
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else ""
    return sign + tick_size(abs(value))

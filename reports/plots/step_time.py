"""How long a step takes."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import stats, units
from reports.canvas import facets, row_inches, shorten
from reports.configurations import configurations
from reports.load import Tables
from reports.theme import Theme

TITLE = "Time of a step"
CAPTION = (
    "Marker: median over the steps after the warm-up; line: the middle half of them "
    "(interquartile range). Time runs only: the times of a memory run mean nothing."
)
ORDER = 50
NEEDS = {"steps.seconds": 2}


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per configuration."""
    rows = []
    for configuration in configurations(tables):
        if seconds := configuration.step_seconds:
            first = configuration.first
            low, middle, high = stats.quartiles(seconds)
            rows.append(
                {
                    "facet": first.facet,
                    "method": first.spec.method,
                    "series": first.series,
                    "median_seconds": middle,
                    "first_quartile_seconds": low,
                    "third_quartile_seconds": high,
                    "steps": len(seconds),
                }
            )
    return pd.DataFrame(rows)


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return one panel per model and task."""
    names = list(dict.fromkeys(data["facet"]))
    most = int(data.groupby("facet").size().max())
    figure, panels = facets(names, theme, height=1.4 + row_inches(most) * max(most, 2))
    for name, panel in zip(names, panels, strict=True):
        _panel(panel, data[data["facet"] == name], theme)
    return figure


def _panel(panel: Axes, frame: pd.DataFrame, theme: Theme) -> None:
    for place, row in enumerate(frame.to_dict("records")):
        middle, low, high = (
            row["median_seconds"],
            row["first_quartile_seconds"],
            row["third_quartile_seconds"],
        )
        colour = theme.colour(row["method"])
        panel.plot([low, high], [place, place], color=colour, lw=5, alpha=0.4)
        panel.plot(middle, place, color=colour, marker=theme.marker(row["method"]), markersize=9)
        panel.annotate(
            units.duration(middle), (max(high, middle), place), (9, 0), va="center",
            textcoords="offset points", color=theme.paper("ink"), fontsize=9,
        )  # fmt: skip
    panel.set_yticks(range(len(frame)), [shorten(s, 34) for s in frame["series"]])
    panel.tick_params(axis="y", labelcolor=theme.paper("ink"))
    panel.set_ylim(len(frame) - 0.45, -0.55)
    panel.grid(False, axis="y")
    panel.set_xlim(0, 1.2 * float(frame["third_quartile_seconds"].max()))
    panel.set_xlabel("Seconds per step")

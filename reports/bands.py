"""Curves of several seeds as a mean within a band: one panel of few, small panels of many.

Seeds that ended early would flatter a mean that goes on without them, so a mean ends with the
first of its seeds; from there on every seed is drawn by itself, with a cross where one ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.canvas import Dash, dashes, facets, legend, shorten
from reports.load import Tables
from reports.multiples import Tile, cut, is_many, key, tiles
from reports.theme import Theme, by_method

BAND = (
    "Line: mean over seeds, as far as all seeds go; band: lowest to highest seed. A cross ends a "
    "run that did not complete; its seeds are then drawn singly, thin. With many configurations "
    "there is a panel for each method, with MeZO in grey for reference; the x axis of a "
    "panel is its own, the y axis is shared, and a panel says how far its curves go beyond it."
)
"""How to read the figures, for captions."""


@dataclass(frozen=True)
class Look:
    """What one figure does differently from another."""

    x: str
    x_label: str
    y_label: str
    marked: bool = False
    """Whether each point gets a marker: few points, such as evaluations."""


def time_runs_first(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop the memory runs of a configuration that has time runs: they are the same numbers."""
    timed = frame.groupby("configuration")["measure"].transform(lambda m: (m == "time").any())
    return frame[(frame["measure"] == "time") | ~timed.astype(bool)]


def over_seeds(runs: pd.DataFrame, tables: Tables, x: str) -> pd.DataFrame:
    """Return the rows of ``runs`` (kind ``run``), and their means (kind ``mean``).

    ``runs`` has the columns facet, method, series, key, seed, step, ``x`` and value; means have
    ``low``, ``high`` and ``seeds`` as well. ``ended`` is how a run ended that did not complete.
    """
    ended = {r.record.key: r.ended for r in tables.entries if r.record.status != "completed"}
    runs = runs.assign(kind="run", ended=runs["key"].map(ended).astype(object))
    names = ["facet", "method", "series"]
    of_series = runs.groupby(names, sort=False)["key"].nunique().rename("all").reset_index()
    means = (
        runs.groupby([*names, "step"], sort=False)
        .agg(
            **({x: (x, "mean")} if x != "step" else {}),
            low=("value", "min"),
            high=("value", "max"),
            value=("value", "mean"),
            seeds=("key", "nunique"),
        )
        .reset_index()
        .merge(of_series, on=names)
    )
    whole = means[means["seeds"] == means["all"]].drop(columns="all").assign(kind="mean")
    made = pd.concat([runs.drop(columns="key"), whole], ignore_index=True)
    order = [*names, "kind", "seed", "seeds", *dict.fromkeys(["step", x]), "value", "low", "high"]
    return made[[*order, *(name for name in made.columns if name not in order)]]


def draw(data: pd.DataFrame, look: Look, theme: Theme) -> Figure:
    """Return one panel per model and task; of many configurations, one per method."""
    if is_many(data):
        return _small(data, look, theme)
    names = list(dict.fromkeys(data["facet"]))
    figure, panels = facets(names, theme, height=4.0)
    for name, panel in zip(names, panels, strict=True):
        rows = data[data["facet"] == name]
        pairs = by_method(zip(rows["method"], rows["series"], strict=True))
        styles = dashes(pairs)
        for _, series in pairs:
            several = rows[rows["series"] == series]
            if "raw" in rows:
                _faint(panel, several, look, theme)
            curve(panel, several, look, styles[series], theme, shorten(series))
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.set_xlabel(look.x_label)
        panel.set_ylabel(look.y_label)
    legend(figure, theme)
    return figure


def _small(data: pd.DataFrame, look: Look, theme: Theme) -> Figure:
    figure, made = tiles(data, theme)
    for one in made:
        fill(one, look, theme)
    for name in dict.fromkeys(one.facet for one in made):
        cut([one for one in made if one.facet == name], theme)
    name_axes(figure, look, theme)
    legend(figure, theme)
    return figure


def name_axes(figure: Figure, look: Look, theme: Theme) -> None:
    """Name the axes once for all small panels."""
    figure.supxlabel(look.x_label, fontsize=10, color=theme.paper("muted"))
    figure.supylabel(look.y_label, fontsize=10, color=theme.paper("muted"))


def fill(tile: Tile, look: Look, theme: Theme) -> None:
    """Draw a small panel: the reference as far as the panel goes, and the method's series."""
    far = float(tile.rows[look.x].max())
    means = tile.reference[tile.reference["kind"] == "mean"].sort_values(look.x)
    beyond = means[means[look.x] > far].head(1)
    shown = pd.concat([means[means[look.x] <= far], beyond])
    if not shown.empty:
        tile.panel.plot(
            shown[look.x], shown["value"], color=theme.paper("muted"), lw=1.2, alpha=0.75,
            label=f"{tile.reference_name}, for reference", zorder=2,
        )  # fmt: skip
    for series, style in tile.styles.items():
        rows = tile.rows[tile.rows["series"] == series]
        curve(tile.panel, rows, look, style, theme)
    tile.panel.set_xlim(0, 1.03 * far if far else 1)
    key(tile.panel, tile.method, tile.styles, theme)


def curve(
    panel: Axes, rows: pd.DataFrame, look: Look, style: Dash, theme: Theme, label: str = ""
) -> None:
    """Draw one series: its mean and band; seed by seed too where one ended early."""
    means = rows[rows["kind"] == "mean"].sort_values("step")
    method = str(rows["method"].iloc[0])
    colour, marker = theme.colour(method), theme.marker(method) if look.marked else ""
    if not means.empty:
        panel.plot(
            means[look.x], means["value"], color=colour, lw=2, linestyle=style, marker=marker,
            markersize=4, label=label, zorder=4,
        )  # fmt: skip
        if means["seeds"].max() > 1:
            panel.fill_between(
                means[look.x].astype(float), means["low"].astype(float),
                means["high"].astype(float), color=colour, alpha=0.18, lw=0, zorder=3,
            )  # fmt: skip
    runs = rows[rows["kind"] == "run"].sort_values("step")
    if runs["ended"].isna().all():
        return
    for _, run in runs.groupby("seed"):
        panel.plot(run[look.x], run["value"], color=colour, lw=0.9, linestyle=style, zorder=3)
        if run["ended"].isna().all():
            continue
        panel.plot(run[look.x].iloc[-1], run["value"].iloc[-1], marker="X", markersize=8,
                   color=theme.paper("bad"), markeredgecolor=theme.paper("surface"),
                   linestyle="none", label="did not complete", zorder=6)  # fmt: skip


def _faint(panel: Axes, rows: pd.DataFrame, look: Look, theme: Theme) -> None:
    colour = theme.colour(str(rows["method"].iloc[0]))
    for _, run in rows[rows["kind"] == "run"].groupby("seed"):
        panel.plot(run[look.x], run["raw"], color=colour, alpha=0.22, lw=0.9)

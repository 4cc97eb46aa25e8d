"""Accuracy along a run: what the accuracy plots share, whatever they have on the x axis."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports import bands
from reports.canvas import Dash, dashes, facets, legend, shorten
from reports.load import Tables
from reports.multiples import is_many, tiles
from reports.theme import Theme, by_method

Named = tuple[tuple[str, str], Dash]
"""Method and series, and the line style that tells it from the method's others."""

CAPTION = (
    "A run's evaluations are joined by a line; error bars are the binomial standard error. Where "
    "there are several seeds, faint points are the seeds and the line is their mean. "
    "Solid grey: zero-shot with the same prompt; dashed: always answering with the "
    "most frequent class. With many configurations there is a panel for each method, with a band "
    "from the lowest to the highest seed instead of error bars, MeZO in thin grey, and zero-shot "
    "dotted. A mean goes as far as all its seeds go."
)


def along(tables: Tables, x: str) -> pd.DataFrame:
    """Return one row per evaluation with column ``x``, and one per step for means over seeds.

    ``kind`` is ``run`` or ``mean``. Runs of methods that take no step give no points: they are
    the horizontal line. Shares (``accuracy``, ``zero_shot``, ``majority``) are fractions.
    """
    frame = tables.evaluations
    frame = frame[frame["accuracy"].notna() & frame[x].notna()]
    # By series, not by run: a seed that diverged at once must not leave the mean to the others.
    trained = frame.groupby(["facet", "series"])["step"].transform("max") > 0
    frame = bands.time_runs_first(frame[trained])
    if frame.empty:
        return frame
    columns = ["facet", "method", "series", "key", "seed", "step", x, "n", "zero_shot", "majority"]
    runs = frame[columns].assign(value=frame["accuracy"])
    made = bands.over_seeds(runs.astype({x: float}) if x == "train_seconds" else runs, tables, x)
    fixed = ["n", "zero_shot", "majority"]
    of_series = runs.groupby(["facet", "series"], sort=False)[fixed].first()
    made = made.drop(columns=fixed).join(of_series, on=["facet", "series"])
    # The seeds answer the same examples, so their mean is as uncertain as one run.
    made["standard_error"] = (made["value"] * (1 - made["value"]) / made["n"]) ** 0.5
    return made.rename(columns={"value": "accuracy"})


def draw(data: pd.DataFrame, x: str, label: str, theme: Theme) -> Figure:
    """Return one panel per model and task; of many configurations, one per method."""
    if is_many(data):
        return _small(data, x, label, theme)
    names = list(dict.fromkeys(data["facet"]))
    figure, panels = facets(names, theme, height=4.0)
    pairs = by_method(zip(data["method"], data["series"], strict=True))
    lines = dashes(pairs)
    for name, panel in zip(names, panels, strict=True):
        rows = data[data["facet"] == name]
        _references(panel, rows, theme)
        for pair in pairs:
            if (rows["series"] == pair[1]).any():
                _series(panel, rows[rows["series"] == pair[1]], x, (pair, lines[pair[1]]), theme)
        panel.set_xlabel(label)
        panel.set_ylabel("Accuracy")
        _axis(panel, 6)
    legend(figure, theme)
    return figure


def _small(data: pd.DataFrame, x: str, label: str, theme: Theme) -> Figure:
    shares = ["low", "high"]
    percents = data.assign(value=100 * data["accuracy"], **{s: 100 * data[s] for s in shares})
    figure, made = tiles(percents, theme)
    look = bands.Look(x, label, "Accuracy", marked=True)
    for tile in made:
        _references(tile.panel, tile.rows, theme, ":")
        bands.fill(tile, look, theme)
        here = percents.loc[percents["facet"] == tile.facet, "value"]
        tile.panel.set_ylim(here.min() - 3, here.max() + 3)
        _axis(tile.panel, 4)
    bands.name_axes(figure, look, theme)
    legend(figure, theme)
    return figure


def _series(panel: Axes, rows: pd.DataFrame, x: str, named: Named, theme: Theme) -> None:
    (method, series), line_style = named
    colour, marker = theme.colour(method), theme.marker(method)
    means, runs = rows[rows["kind"] == "mean"], rows[rows["kind"] == "run"]
    if runs["seed"].nunique() > 1 or means.empty:
        panel.plot(
            runs[x], 100 * runs["accuracy"], marker=marker, markersize=4, alpha=0.45,
            color=colour, linestyle="none",
        )  # fmt: skip
    line = means.sort_values("step")
    panel.errorbar(
        line[x],
        100 * line["accuracy"],
        yerr=100 * line["standard_error"],
        color=colour,
        marker=marker,
        linestyle=line_style,
        elinewidth=1.1,
        capsize=3,
        label=shorten(series),
        zorder=4,
    )


def _references(panel: Axes, rows: pd.DataFrame, theme: Theme, style: Dash = "-") -> None:
    zero_shot, majority = rows["zero_shot"].dropna(), rows["majority"].dropna()
    if not zero_shot.empty:
        panel.axhline(
            100 * zero_shot.mean(), color=theme.colour("zero_shot"), lw=1.5, linestyle=style,
            label="Zero-shot",
        )  # fmt: skip
    if not majority.empty:
        panel.axhline(
            100 * majority.mean(), color=theme.paper("ink"), lw=1.2, linestyle="--",
            label="Majority class",
        )  # fmt: skip


def _axis(panel: Axes, ticks: int) -> None:
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0), min(high, 101))
    panel.yaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))

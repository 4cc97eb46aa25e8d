"""Accuracy along a run: what the accuracy plots share, whatever they have on the x axis."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.canvas import Dash, dashes, facets, legend, shorten
from reports.load import Tables
from reports.theme import Theme, by_method

Named = tuple[tuple[str, str], Dash]
"""Method and series, and the line style that tells it from the method's others."""

CAPTION = (
    "A run's evaluations are joined by a line; error bars are the binomial standard error. Where "
    "there are several seeds, faint points are the seeds and the line is their mean. "
    "Solid grey: zero-shot with the same prompt; dashed: always answering with the "
    "most frequent class."
)


def along(tables: Tables, x: str) -> pd.DataFrame:
    """Return one row per evaluation with column ``x``, and one per step for means over seeds.

    ``kind`` is ``run`` or ``mean``. Runs of methods that take no step give no points: they are
    the horizontal line. Shares (``accuracy``, ``zero_shot``, ``majority``) are fractions.
    """
    frame = tables.evaluations
    frame = frame[frame["accuracy"].notna() & frame[x].notna()]
    trained = frame.groupby("key")["step"].transform("max") > 0
    frame = _time_runs_first(frame[trained])
    columns = ["facet", "method", "series", "seed", "step", x, "accuracy", "standard_error", "n"]
    runs = frame[[*columns, "zero_shot", "majority"]].assign(kind="run")
    if x == "train_seconds":
        runs[x] = runs[x].astype(float)
    return pd.concat([runs, _means(runs, x)], ignore_index=True)


def _time_runs_first(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop the memory runs of a configuration that has time runs: they are the same answers."""
    timed = frame.groupby("configuration")["measure"].transform(lambda m: (m == "time").any())
    return frame[(frame["measure"] == "time") | ~timed.astype(bool)]


def _means(runs: pd.DataFrame, x: str) -> pd.DataFrame:
    keys = ["facet", "method", "series", "step"]
    grouped = runs.groupby(keys, sort=False)
    frame = grouped.agg(
        **{x: (x, "mean")},
        accuracy=("accuracy", "mean"),
        n=("n", "max"),
        sd=("accuracy", "std"),
        runs=("seed", "count"),
        zero_shot=("zero_shot", "first"),
        majority=("majority", "first"),
    ).reset_index()
    frame = frame[frame["runs"] > 1].assign(kind="mean")
    # The seeds answer the same examples, so their mean is as uncertain as one run.
    variance = frame["accuracy"] * (1 - frame["accuracy"]) / frame["n"]
    return frame.assign(standard_error=variance**0.5)


def draw(data: pd.DataFrame, x: str, label: str, theme: Theme) -> Figure:
    """Return one panel per model and task."""
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
        _axes(panel, label)
    legend(figure, theme)
    return figure


def _series(panel: Axes, rows: pd.DataFrame, x: str, named: Named, theme: Theme) -> None:
    (method, series), line_style = named
    colour, marker = theme.colour(method), theme.marker(method)
    means, runs = rows[rows["kind"] == "mean"], rows[rows["kind"] == "run"]
    if not means.empty:
        panel.plot(
            runs[x], 100 * runs["accuracy"], marker=marker, markersize=4, alpha=0.45,
            color=colour, linestyle="none",
        )  # fmt: skip
    for _, line in [("", means)] if not means.empty else list(runs.groupby("seed")):
        line = line.sort_values("step")
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


def _references(panel: Axes, rows: pd.DataFrame, theme: Theme) -> None:
    zero_shot, majority = rows["zero_shot"].dropna(), rows["majority"].dropna()
    if not zero_shot.empty:
        panel.axhline(
            100 * zero_shot.mean(), color=theme.colour("zero_shot"), lw=1.5, label="Zero-shot"
        )
    if not majority.empty:
        panel.axhline(
            100 * majority.mean(), color=theme.paper("ink"), lw=1.2, linestyle="--",
            label="Majority class",
        )  # fmt: skip


def _axes(panel: Axes, label: str) -> None:
    panel.set_xlabel(label)
    panel.set_ylabel("Accuracy")
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0), min(high, 101))
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))

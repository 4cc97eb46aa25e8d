"""The training loss, step by step."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.canvas import dashes, facets, legend, shorten
from reports.load import Tables
from reports.theme import Theme, by_method

TITLE = "Training loss"
CAPTION = (
    "Faint: the first loss each step saw, on its own minibatch (for two-point methods that of "
    "theta + eps z). Bold: its mean over up to a tenth of the run before, over all seeds."
)
ORDER = 40
NEEDS = {"steps.loss": 2, "steps.step": 5}


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per step and run, with the trailing mean over the seeds of its series."""
    frame = tables.steps
    timed = frame.groupby("configuration")["measure"].transform(lambda m: (m == "time").any())
    frame = frame[(frame["measure"] == "time") | ~timed.astype(bool)]
    columns = ["facet", "method", "series", "seed", "step", "loss"]
    return frame[columns].merge(_smooth(frame), on=["facet", "series", "step"])


def _smooth(frame: pd.DataFrame) -> pd.DataFrame:
    means = frame.groupby(["facet", "series", "step"], sort=False)["loss"].mean().reset_index()
    lines = []
    for _, rows in means.groupby(["facet", "series"], sort=False):
        window = max(1, len(rows) // 10)
        rows = rows.sort_values("step")
        smooth = rows["loss"].rolling(window, min_periods=1).mean()
        lines.append(rows.assign(trailing_mean_loss=smooth, window_steps=window))
    return pd.concat(lines).drop(columns="loss")


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return one panel per model and task."""
    names = list(dict.fromkeys(data["facet"]))
    figure, panels = facets(names, theme, height=4.0)
    for name, panel in zip(names, panels, strict=True):
        _panel(panel, data[data["facet"] == name], theme)
    legend(figure, theme)
    return figure


def _panel(panel: Axes, frame: pd.DataFrame, theme: Theme) -> None:
    pairs = by_method(zip(frame["method"], frame["series"], strict=True))
    lines = dashes(pairs)
    for method, series in pairs:
        rows = frame[frame["series"] == series]
        for _, run in rows.groupby("seed"):
            panel.plot(run["step"], run["loss"], color=theme.colour(method), alpha=0.22, lw=0.9)
        line = rows.drop_duplicates("step").sort_values("step")
        panel.plot(
            line["step"],
            line["trailing_mean_loss"],
            color=theme.colour(method),
            lw=2.2,
            linestyle=lines[series],
            label=shorten(series),
        )
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("Step")
    panel.set_ylabel("Loss (nats)")

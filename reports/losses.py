"""The training loss along a run: what the loss plots share, whatever they have on the x axis."""

from __future__ import annotations

import math

import pandas as pd

from reports import bands
from reports.load import Tables

MOST_POINTS = 240
"""Points drawn of one curve; of a longer run, every so many steps."""

CAPTION = (
    "The first loss that each step saw, on its own minibatch (for two-point methods that of "
    "theta + eps z): faint, where there are few configurations. Bold: its mean over the last "
    "tenth of a run's steps (over all so far in the first tenth), taken for each seed by itself, "
    f"so it lags by up to half of that. Of a long run about {MOST_POINTS} steps are drawn."
)
COUNTED = (
    "A forward pass is one evaluation of the objective on a minibatch; one on the anchor set of a "
    "variance-reduced method counts as one too, though the set is larger. Backward passes are not "
    "counted here; each costs about as much as two forward passes."
)


def along(tables: Tables, x: str) -> pd.DataFrame:
    """Return one row per step and run with column ``x``, and the means over seeds.

    ``raw`` is the loss of the step, ``value`` its trailing mean over ``window_steps`` steps.
    """
    frame = bands.time_runs_first(tables.steps)
    frame = frame[frame[x].notna()]
    if frame.empty:
        return frame
    curves = [_smooth(rows) for _, rows in frame.groupby(["facet", "series"], sort=False)]
    runs = pd.concat(curves).rename(columns={"loss": "raw"})
    columns = ["facet", "method", "series", "key", "seed", "step", x, "value", "raw",
               "window_steps", "score"]  # fmt: skip
    return bands.over_seeds(runs[list(dict.fromkeys(columns))], tables, x)


def _smooth(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of one series, each with its trailing mean, thinned."""
    longest = int(rows["step"].max())
    window, stride = max(1, longest // 10), math.ceil(longest / MOST_POINTS)
    curves = []
    for _, run in rows.sort_values("step").groupby("key", sort=False):
        value = run["loss"].rolling(window, min_periods=1).mean()
        last = run["step"] == run["step"].max()
        shown = (run["step"] % stride == 0) | (run["step"] == 1) | last
        curves.append(run.assign(value=value, window_steps=window).loc[shown])
    thinned: pd.DataFrame = pd.concat(curves)
    return thinned


def label(data: pd.DataFrame) -> str:
    """Return what the y axis shows."""
    nats = set(data["score"].dropna()) == {"cross_entropy"}
    return "Loss (nats)" if nats else "Loss (nats, or 1 \N{MINUS SIGN} score)"

"""The loss on the held-back examples against the forward passes spent on training."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from reports import bands, losses
from reports.load import Tables
from reports.theme import Theme

TITLE = "Loss on held-back examples against forward passes"
CAPTION = (
    "Mean loss over the held-back examples, the same ones for every run, before training, along "
    f"it and after it. {bands.BAND} {losses.COUNTED}"
)
ORDER = 35
NEEDS = {"evaluations.forward_passes": 2, "evaluations.loss": 2}


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per evaluation of trained runs, and the means over seeds."""
    frame = bands.time_runs_first(tables.evaluations)
    frame = frame[frame.groupby(["facet", "series"])["step"].transform("max") > 0]
    frame = frame.assign(value=frame["loss"])
    columns = ["facet", "method", "series", "key", "seed", "step", "forward_passes", "value"]
    return bands.over_seeds(frame[columns], tables, "forward_passes")


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return the loss over evaluations of the objective."""
    look = bands.Look("forward_passes", "Forward passes (minibatches)", "Loss (nats)", marked=True)
    return bands.draw(data, look, theme)

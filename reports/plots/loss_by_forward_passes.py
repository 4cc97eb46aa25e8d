"""The training loss against the forward passes spent."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from reports import bands, losses
from reports.load import Tables
from reports.theme import Theme

TITLE = "Training loss against forward passes"
CAPTION = f"{losses.CAPTION} {bands.BAND} {losses.COUNTED}"
ORDER = 41
NEEDS = {"steps.loss": 2, "steps.step": 5, "steps.forward_passes": 5}


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per step and run, smoothed, and the means over seeds."""
    return losses.along(tables, "forward_passes")


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return the loss over evaluations of the objective."""
    look = bands.Look("forward_passes", "Forward passes (minibatches)", losses.label(data))
    return bands.draw(data, look, theme)

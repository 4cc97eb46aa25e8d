"""The training loss, step by step."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from reports import bands, losses
from reports.load import Tables
from reports.theme import Theme

TITLE = "Training loss"
CAPTION = f"{losses.CAPTION} {bands.BAND}"
ORDER = 40
NEEDS = {"steps.loss": 2, "steps.step": 5}


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per step and run, smoothed, and the means over seeds."""
    return losses.along(tables, "step")


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return the loss over steps."""
    return bands.draw(data, bands.Look("step", "Step", losses.label(data)), theme)

"""Accuracy against the forward passes spent on training."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from reports import curves
from reports.load import Tables
from reports.theme import Theme

TITLE = "Accuracy against forward passes"
CAPTION = curves.CAPTION + (
    " Backward passes are not counted here; each costs about as much as two forward passes."
)
ORDER = 31
NEEDS = {"evaluations.forward_passes": 2}


def data(tables: Tables) -> pd.DataFrame:
    """Return the evaluations, and their means over seeds."""
    return curves.along(tables, "forward_passes")


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return accuracy over minibatch evaluations of the objective."""
    return curves.draw(data, "forward_passes", "Forward passes (minibatches)", theme)

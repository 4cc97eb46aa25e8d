"""Accuracy against the seconds spent in training steps."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from reports import curves
from reports.load import Tables
from reports.theme import Theme

TITLE = "Accuracy against training time"
CAPTION = curves.CAPTION + " Time is that of the steps alone, without loading and evaluating."
ORDER = 30
NEEDS = {"evaluations.train_seconds": 2}


def data(tables: Tables) -> pd.DataFrame:
    """Return the evaluations of time runs, and their means over seeds."""
    return curves.along(tables, "train_seconds")


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return accuracy over seconds."""
    return curves.draw(data, "train_seconds", "Seconds in training steps", theme)

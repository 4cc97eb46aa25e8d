"""Memory along the run, with its phases: one run for each method and model."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from reports import panels_of_time, timeline
from reports.load import Tables
from reports.theme import Theme

TITLE = "Memory along the run"
CAPTION = (
    "One run for each method and model (one that completed, if any did; of the lowest seed). All "
    "that is in memory, loaded libraries included, read at intervals: the highest reading of "
    "each pixel is drawn, yet what came and went between two readings is missed. Level lines: the "
    "exact peak of a phase, or else of the run. Shaded: the phases; the strip at the foot: the "
    "phases inside a step, where they are long enough to be seen. Dotted: after the libraries "
    "were loaded. Dashed red: the limit that was set (on the host above the libraries, counting "
    "private memory alone). A cross: memory ran out. Each device has a line of its own."
)
ORDER = 25
NEEDS = {"runs.key": 1}
_PIXELS = 360


def data(tables: Tables) -> pd.DataFrame:
    """Return the lines, phases and limits of the representative runs."""
    runs = timeline.representatives(tables)
    return timeline.frame(runs, timeline.short_names(runs), _PIXELS)


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return a panel for each run; the y axis is shared within a model."""
    return panels_of_time.draw(data, theme)

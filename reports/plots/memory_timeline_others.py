"""Memory along the run, of the runs that do not stand for their method: other seeds, settings."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from reports import panels_of_time, timeline
from reports.load import Tables
from reports.theme import Theme

TITLE = "Memory along the run: the other runs"
CAPTION = (
    "Drawn as the figure of the same name without these runs. Of very many the first are drawn; "
    "every run's readings stand in its folder, in trace.csv.gz."
)
ORDER = 26
NEEDS = {"runs.key": 2}
FOLDED = True
_PIXELS = 160


def data(tables: Tables) -> pd.DataFrame:
    """Return the lines, phases and limits of the runs that the other figure leaves out."""
    runs = timeline.others(tables)[: timeline.MOST_OTHERS]
    return timeline.frame(runs, timeline.long_names(runs), _PIXELS)


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return a panel for each run; the y axis is shared within a model."""
    return panels_of_time.draw(data, theme, small=True)

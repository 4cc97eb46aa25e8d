"""The plots: one file each, found by looking into this folder.

To add one, drop a file here that holds

- ``TITLE``: heading of the figure; ``CAPTION``: how to read it, in a sentence or two;
- ``ORDER``: where it comes among the others, small first;
- ``NEEDS``: frame.column -> how many different values the section must have in it. Where a need
  is not met the plot is left out;
- ``data(tables) -> DataFrame``: exactly what is plotted. It becomes the CSV file beside the
  figure; an empty one leaves the plot out;
- ``draw(data, theme) -> Figure``: the figure, from that frame alone;
- ``FOLDED``, if it likes: True for a figure that the page shows on demand alone.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Protocol, cast

import pandas as pd
from matplotlib.figure import Figure

from reports.load import Tables
from reports.theme import Theme


class Plot(Protocol):
    """What a file of this folder holds."""

    TITLE: str
    CAPTION: str
    ORDER: int
    NEEDS: Mapping[str, int]

    def data(self, tables: Tables) -> pd.DataFrame:
        """Return exactly what is plotted."""
        ...

    def draw(self, data: pd.DataFrame, theme: Theme) -> Figure:
        """Return the figure of a frame that `data` returned and that is not empty."""
        ...


def discover(folders: Iterable[str] | None = None) -> dict[str, Plot]:
    """Return the plots by name, in the order in which they appear.

    Raises:
        ImportError: a file can't be imported, or lacks one of the parts.

    """
    found: dict[str, Plot] = {}
    for info in pkgutil.iter_modules(__path__ if folders is None else list(folders)):
        module = importlib.import_module(f"{__name__}.{info.name}")
        parts = ("TITLE", "CAPTION", "ORDER", "NEEDS", "data", "draw")
        if lacking := [part for part in parts if not hasattr(module, part)]:
            raise ImportError(f"reports/plots/{info.name}.py lacks {', '.join(lacking)}.")
        found[info.name] = cast(Plot, module)  # a module with these parts is a Plot
    return dict(sorted(found.items(), key=lambda item: (item[1].ORDER, item[0])))


def met(plot: Plot, tables: Tables) -> bool:
    """Return whether the tables hold what the plot needs."""
    for need, least in plot.NEEDS.items():
        name, column = need.split(".")
        frame: pd.DataFrame = getattr(tables, name)
        if column not in frame.columns or frame[column].nunique() < least:
            return False
    return True

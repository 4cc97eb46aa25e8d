"""Every plot whose needs a section meets, drawn once and written three ways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from reports import marks, plots
from reports.canvas import WIDE
from reports.load import Tables
from reports.svg import drawing, for_page, to_png, to_svg
from reports.theme import Theme


@dataclass(frozen=True)
class Drawn:
    """A figure, as files and as part of the page."""

    name: str
    """Of its files: group and plot."""
    title: str
    caption: str
    wide: bool
    svg: str
    png: bytes
    csv: str
    """Exactly what is plotted."""
    inline: str
    folded: bool = False
    """Whether the page shows it on demand alone."""


def draw_all(tables: Tables, name: str) -> Iterator[Drawn]:
    """Yield the figures of one section, whose name becomes part of theirs."""
    theme, tables = Theme(), marks.marked(tables)
    for plot_name, plot in plots.discover().items():
        data = plot.data(tables) if plots.met(plot, tables) else None
        if data is not None and not data.empty:
            yield _draw(plot, f"{name}--{plot_name}", data, theme)


def _draw(plot: plots.Plot, name: str, data: pd.DataFrame, theme: Theme) -> Drawn:
    with drawing():
        figure = plot.draw(data, theme)
        marks.explain(figure, data, theme)
        svg = to_svg(figure)
        wide = figure.get_figwidth() >= WIDE
        # Places were found for the SVG: finding them again takes as long as all the drawing.
        figure.set_layout_engine("none")
        png = to_png(figure)
    inline = for_page(svg, name.replace(".", "-"), theme, plot.TITLE)
    csv = data.to_csv(index=False, lineterminator="\n")
    folded = getattr(plot, "FOLDED", False)
    return Drawn(name, plot.TITLE, plot.CAPTION, wide, svg, png, csv, inline, folded)

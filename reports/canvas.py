"""Figures to draw on, all of one look: facets, quiet axes, a legend that never covers data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.rcsetup import cycler

from reports.theme import Theme

NARROW, WIDE = 6.4, 13.4
"""Widths in inches: half of the page, and all of it."""

Dash = str | tuple[int, tuple[float, ...]]
_DASHES: tuple[Dash, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))

_INK = Theme().paper("ink")
STYLE: dict[str, object] = {
    "svg.hashsalt": "zometer",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "text.parse_math": False,
    # Whatever a plot leaves uncoloured is ink, and so follows the theme.
    "axes.prop_cycle": cycler(color=[_INK]),
    **dict.fromkeys(("text.color", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("patch.facecolor", "patch.edgecolor", "hatch.color"), _INK),
    "axes.unicode_minus": True,
}
"""Settings under which figures are drawn and saved; the user's own are put aside meanwhile."""


def facets(
    names: Sequence[str], theme: Theme, height: float = 3.6, across: int = 2
) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per name, titled where there are several."""
    across = min(len(names), across)
    down = math.ceil(len(names) / across)
    width = NARROW if across == 1 else WIDE
    engine = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.06)
    figure = Figure(figsize=(width, height * down), layout=engine)
    figure.set_facecolor(theme.paper("surface"))
    panels = [figure.add_subplot(down, across, i + 1) for i in range(len(names))]
    for panel, name in zip(panels, names, strict=True):
        quiet(panel, theme)
        if len(names) > 1:
            panel.set_title(shorten(name, 60), loc="left", color=theme.paper("ink"))
    return figure, panels


def row_inches(rows: int) -> float:
    """Return the height of a row of a bar chart in inches: less where there are many."""
    return 0.45 if rows <= 16 else 0.27


def quiet(panel: Axes, theme: Theme) -> None:
    """Give a panel its frame, grid and text colours."""
    panel.set_facecolor("none")
    panel.grid(True, color=theme.paper("line"), linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(theme.paper("line"))
    panel.tick_params(colors=theme.paper("muted"), length=0, pad=5)
    panel.xaxis.label.set_color(theme.paper("muted"))
    panel.yaxis.label.set_color(theme.paper("muted"))


def legend(figure: Figure, theme: Theme) -> None:
    """Put one legend above all panels: an entry per label, as many columns as there is room."""
    handles: dict[str, Any] = {}  # containers are no artists, yet legends take them
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    # Series are containers (bars, points with whiskers) or come first; references follow them.
    handles = dict(sorted(handles.items(), key=lambda item: not isinstance(item[1], Container)))
    longest = max(len(label) for label in handles)
    room = int(figure.get_figwidth() * 72 / (5.6 * longest + 46))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper left",
        ncols=max(1, min(room, len(handles))),
        frameon=False,
        labelcolor=theme.paper("ink"),
        handlelength=1.8,
        columnspacing=1.6,
        borderaxespad=0.2,
    )


def dashes(pairs: Iterable[tuple[str, str]]) -> dict[str, Dash]:
    """Return a line style for each (method, series): a method's second series is dashed, and on.

    >>> dashes([("mezo", "MeZO (lr 1e-06)"), ("mezo", "MeZO (lr 1e-05)"), ("lozo", "lozo")])
    {'MeZO (lr 1e-06)': '-', 'MeZO (lr 1e-05)': (0, (5, 2)), 'lozo': '-'}

    """
    seen: dict[str, int] = {}
    styles: dict[str, Dash] = {}
    for method, series in dict.fromkeys(pairs):
        styles[series] = _DASHES[seen.get(method, 0) % len(_DASHES)]
        seen[method] = seen.get(method, 0) + 1
    return styles


def shorten(text: str, longest: int = 44) -> str:
    """Return text that fits, its middle left out; a label must not begin with an underscore.

    >>> shorten("a-very-long-model-name", 11)
    'a-ver…-name'

    """
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-((longest - 1) // 2) :]}"
    return f" {text}" if text.startswith("_") else text


def powers_of_two(low: float, high: float, most: int = 7) -> list[float]:
    """Return round numbers of bytes between two, powers of two, for a logarithmic axis.

    >>> powers_of_two(2**29, 2**31)
    [536870912.0, 1073741824.0, 2147483648.0]

    """
    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / most))
    return [float(2**power) for power in range(first, last + 1, stride)]


def even_bytes(high: float, most: int = 5) -> list[float]:
    """Return round numbers of bytes from 0, for a linear axis that ends at ``high``.

    >>> even_bytes(3 * 2**30)
    [0.0, 1073741824.0, 2147483648.0, 3221225472.0]

    """
    step = 2.0 ** math.ceil(math.log2(high / most))
    return [step * i for i in range(int(high / step) + 1)]

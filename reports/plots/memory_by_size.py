"""Peak memory against the number of parameters, both logarithmic, a line per method."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from reports import units
from reports.canvas import Dash, dashes, facets, legend, powers_of_two, shorten
from reports.headline import BASES
from reports.load import Tables
from reports.memory import peaks
from reports.theme import Theme, by_method

TITLE = "Peak memory against model size"
CAPTION = (
    "Filled: measured; hollow: predicted without running; cross: ran out of memory, drawn at the "
    "limit (dash-dotted). Dotted: the weights alone. Whiskers: standard deviation over seeds. "
    "Both axes are logarithmic."
)
ORDER = 10
NEEDS = {"runs.parameters": 2}


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per model, series and kind (measured, predicted, out of memory, weights)."""
    frame = peaks(tables)
    frame = frame[frame["parameters"].notna() & frame["bytes"].notna()]
    return frame.sort_values("parameters", kind="stable")


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return one panel per definition of memory."""
    bases = [basis for basis in BASES if (data["basis"] == basis).any()]
    figure, panels = facets([BASES[basis] for basis in bases], theme, height=4.4)
    for basis, panel in zip(bases, panels, strict=True):
        _panel(panel, data[data["basis"] == basis], theme)
        panel.set_ylabel(BASES[basis].capitalize().replace(" above", "\nabove"))
    legend(figure, theme)
    return figure


def _panel(panel: Axes, frame: pd.DataFrame, theme: Theme) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log", base=2)
    _reference(panel, frame, theme)
    lines = dashes(by_method(zip(frame["method"], frame["series"], strict=True)))
    for (series, kind), rows in frame.groupby(["series", "kind"], sort=False):
        if kind in ("measured", "predicted"):
            hollow = kind == "predicted"
            _line(panel, rows, str(series), "--" if hollow else lines[str(series)], theme)
    _crosses(panel, frame[frame["kind"] == "out of memory"], theme)
    _key(panel, set(frame["kind"]), theme)
    _axes(panel, frame, theme)


def _line(panel: Axes, rows: pd.DataFrame, series: str, dash: Dash, theme: Theme) -> None:
    hollow = rows["kind"].iloc[0] == "predicted"
    method = rows["method"].iloc[0]
    colour = theme.colour(method)
    under = method == "zero_shot" and not hollow  # what MeZO coincides with: a wider line below
    panel.errorbar(
        rows["parameters"],
        rows["bytes"],
        yerr=rows["sd_bytes"].fillna(0) if rows["sd_bytes"].notna().any() else None,
        color=colour,
        marker=theme.marker(method),
        markerfacecolor=theme.paper("surface") if hollow else colour,
        markersize=11 if under else 9 if hollow else 6,
        markeredgewidth=1.4,
        linestyle=dash,
        linewidth=5 if under else 1.1 if hollow else 1.8,
        capsize=3,
        zorder=3 if hollow or under else 4,
        label=None if hollow else shorten(series),
    )


def _crosses(panel: Axes, rows: pd.DataFrame, theme: Theme) -> None:
    """Draw what ran out of memory; crosses that would coincide stand side by side."""
    inches = panel.figure.dpi_scale_trans
    for _, several in rows.groupby(["parameters", "bytes"]):
        for i, method in enumerate(several["method"]):
            aside = ScaledTranslation((i - (len(several) - 1) / 2) * 0.15, 0, inches)
            panel.plot(
                several["parameters"].iloc[0],
                several["bytes"].iloc[0],
                color=theme.colour(method),
                marker="X",
                markersize=10,
                markeredgecolor=theme.paper("surface"),
                linestyle="none",
                zorder=5,
                transform=panel.transData + aside,
            )


def _key(panel: Axes, kinds: set[str], theme: Theme) -> None:
    """Add what hollow markers and crosses mean to the legend, once for all methods."""
    muted, surface = theme.paper("muted"), theme.paper("surface")
    if "predicted" in kinds:
        panel.plot([], [], color=muted, marker="o", markersize=9, markerfacecolor=surface,
                   linestyle="--", linewidth=1.1, label="predicted")  # fmt: skip
    if "out of memory" in kinds:
        panel.plot([], [], color=muted, marker="X", markersize=10, linestyle="none",
                   label="out of memory")  # fmt: skip


def _reference(panel: Axes, frame: pd.DataFrame, theme: Theme) -> None:
    """Draw the weights alone, and the limits that runs were held to."""
    weights = frame[frame["kind"] == "weights"]
    for _, rows in weights.groupby("dtype", sort=False):
        panel.plot(
            rows["parameters"],
            rows["bytes"],
            color=theme.paper("muted"),
            linestyle=":",
            label="weights alone",
            zorder=2,
        )
    for limit in sorted(frame["limit_bytes"].dropna().unique()):
        panel.axhline(
            limit, color=theme.paper("bad"), linestyle="-.", linewidth=1.2, label="limit", zorder=2
        )


def _axes(panel: Axes, frame: pd.DataFrame, theme: Theme) -> None:
    low, high = frame["bytes"].min() / 1.25, frame["bytes"].max() * 1.3
    panel.set_ylim(low, high)
    ticks = powers_of_two(low, high)
    panel.yaxis.set_major_locator(FixedLocator(ticks))
    panel.yaxis.set_major_formatter(FuncFormatter(units.tick_size))
    panel.yaxis.set_minor_locator(NullLocator())
    sizes = sorted(float(size) for size in frame["parameters"].unique())
    spread = max(sizes[-1] / sizes[0], 2.0)
    panel.set_xlim(sizes[0] / spread**0.07, sizes[-1] * spread**0.12)
    apart, shown = spread**0.09, [sizes[0]]
    for candidate in sizes[1:]:
        if candidate >= shown[-1] * apart:
            shown.append(candidate)
    panel.xaxis.set_major_locator(FixedLocator(shown))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: units.count(x)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("Parameters")

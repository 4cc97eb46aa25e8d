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
from reports.marks import gravest
from reports.memory import peaks
from reports.multiples import ACROSS, MANY, REFERENCE, key
from reports.theme import Theme, by_method, rank, title_of

TITLE = "Peak memory against model size"
CAPTION = (
    "Filled: measured; hollow: predicted without running; cross: ran out of memory, drawn at the "
    "limit (dash-dotted). Dotted: the weights alone. Whiskers: standard deviation over seeds. "
    "Both axes are logarithmic. With many configurations there is a panel for each method, with "
    "MeZO in grey for reference."
)
ORDER = 10
NEEDS = {"runs.parameters": 2}


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per model, series and kind (measured, predicted, out of memory, weights)."""
    frame = peaks(tables)
    frame = frame[frame["parameters"].notna() & frame["bytes"].notna()]
    return frame.sort_values("parameters", kind="stable")


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return one panel per definition of memory; of many series, one per method."""
    bases = [basis for basis in BASES if (data["basis"] == basis).any()]
    if data.loc[data["kind"] != "weights"].groupby("basis")["series"].nunique().max() > MANY:
        return _small(data, bases, theme)
    figure, panels = facets([BASES[basis] for basis in bases], theme, height=4.4)
    for basis, panel in zip(bases, panels, strict=True):
        _panel(panel, data[data["basis"] == basis], theme)
        panel.set_ylabel(BASES[basis].capitalize().replace(" above", "\nabove"))
    legend(figure, theme)
    return figure


def _small(data: pd.DataFrame, bases: list[str], theme: Theme) -> Figure:
    pairs = {(b, m) for b, m in zip(data["basis"], data["method"], strict=True) if m}
    places = sorted(pairs, key=lambda pair: (bases.index(pair[0]), rank(pair[1])))
    heads = [
        gravest(data.loc[(data["basis"] == b) & (data["method"] == m), "series"])
        + title_of(m)
        + (f", {BASES[b]}" if bases[1:] else "")
        for b, m in places
    ]
    figure, panels = facets(heads, theme, height=2.9, across=ACROSS)
    for (basis, method), panel in zip(places, panels, strict=True):
        here = data[data["basis"] == basis]
        own = here[here["method"] == method]
        _panel(panel, here[here["method"].isin([method, ""])], theme, named=False)
        _axes(panel, here, theme)  # the same ones in every panel
        lines = dashes(by_method(zip(own["method"], own["series"], strict=True)))
        key(panel, method, lines, theme)
        panel.set_xlabel("")
        rows = here[(here["method"] == REFERENCE) & (here["kind"] == "measured")]
        if method != REFERENCE and not rows.empty:
            first = rows[rows["series"] == rows["series"].iloc[0]]
            panel.plot(first["parameters"], first["bytes"], color=theme.paper("muted"), lw=1.2,
                       label=f"{first['series'].iloc[0]}, for reference")  # fmt: skip
    figure.supxlabel("Parameters", fontsize=10, color=theme.paper("muted"))
    figure.supylabel("Peak memory", fontsize=10, color=theme.paper("muted"))
    legend(figure, theme)
    return figure


def _panel(panel: Axes, frame: pd.DataFrame, theme: Theme, named: bool = True) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log", base=2)
    _reference(panel, frame, theme)
    lines = dashes(by_method(zip(frame["method"], frame["series"], strict=True)))
    measured = set(frame.loc[frame["kind"] == "measured", "series"])
    for (series, kind), rows in frame.groupby(["series", "kind"], sort=False):
        if kind in ("measured", "predicted"):
            hollow = kind == "predicted"
            dash = "--" if hollow else lines[str(series)]
            first = not (hollow and series in measured)  # a series is named once
            _line(panel, rows, dash, theme, shorten(str(series)) if named and first else "")
    _crosses(panel, frame[frame["kind"] == "out of memory"], theme)
    _key(panel, set(frame["kind"]), theme)
    _axes(panel, frame, theme)


def _line(panel: Axes, rows: pd.DataFrame, dash: Dash, theme: Theme, label: str) -> None:
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
        label=label,
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

"""Peak memory within each phase, methods side by side."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from reports import units
from reports.canvas import even_bytes, facets, legend, row_inches, shorten
from reports.load import Tables
from reports.multiples import is_many
from reports.theme import Theme, by_method

TITLE = "Peak memory within each phase"
CAPTION = (
    "Each bar is the largest memory while that phase ran; peaks of phases do not add up, and "
    "train holds the phases below it. Filled: measured; hollow: predicted. No bar: the method "
    "has no such phase, or its run did not complete. Dotted: the weights alone. Whiskers: "
    "standard deviation over seeds. Of many models the largest are shown."
)
ORDER = 20
NEEDS = {"measurements.phase": 2}

_PHASES = ("load", "train", "perturb", "forward", "backward", "update", "evaluate")
_MOST = 24
"""Panels; with a panel a phase, a model takes as many as it has phases."""
_DEVICE, _HOST = "device_allocated_peak_bytes", "host_peak_bytes"
_LABELS = {
    _DEVICE: "Allocated device memory",
    _HOST: "Host memory above the loaded libraries",
}


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per model, series and phase; host figures are above the libraries."""
    numbers = tables.measurements[tables.measurements["value"].notna()]
    metric = _DEVICE if (numbers["metric"] == _DEVICE).any() else _HOST
    numbers = numbers[(numbers["metric"] == metric) & (numbers["phase"] != "run")]
    guess = numbers["quality"] == "predicted"
    memory = numbers.groupby("configuration")["measure"].transform(lambda m: (m == "memory").any())
    chosen = (numbers["measure"] == "memory") | ~memory.astype(bool)
    numbers = numbers[guess | ((numbers["status"] == "completed") & chosen)]
    baselines = tables.runs.set_index("key")["baseline_bytes"] if metric == _HOST else None
    above = numbers["value"].astype(float)
    if baselines is not None:
        above = above - numbers["key"].map(baselines.groupby(level=0).first()).astype(float)
    numbers = numbers.assign(bytes=above, metric=metric)[above.notna()]
    if numbers["phase"].nunique() < 2:
        return numbers.iloc[:0]
    keys = ["facet", "method", "series", "phase", "metric", "quality"]
    grouped = numbers.groupby(keys, sort=False)["bytes"].agg(["mean", "std", "count"])
    columns = {"mean": "bytes", "std": "sd_bytes", "count": "runs"}
    frame = _largest(_preferred(grouped.reset_index().rename(columns=columns)))
    weights = tables.runs.groupby("facet")["parameter_bytes"].max()
    return frame.assign(weights_bytes=frame["facet"].map(weights).astype(float))


def _preferred(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the measured row where a phase was both measured and predicted."""
    order = frame.assign(guess=frame["quality"] == "predicted").sort_values("guess", kind="stable")
    kept = order.drop_duplicates(["facet", "series", "phase"]).drop(columns="guess")
    return kept.sort_index()


def _largest(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of as many models as there is room for, the last ones: models grow."""
    facets = list(dict.fromkeys(frame["facet"]))
    room = _MOST // frame["phase"].nunique() if is_many(frame) else _MOST
    return frame[frame["facet"].isin(facets[-max(room, 1) :])]


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return one panel per model: phases down, one bar per series."""
    names = list(dict.fromkeys(data["facet"]))
    phases = sorted(set(data["phase"]), key=_place)
    if is_many(data):
        return _by_phase(data, phases, theme)
    series = by_method(zip(data["method"], data["series"], strict=True))
    height = 1.4 + len(phases) * (0.16 * len(series) + 0.16)
    figure, panels = facets(names, theme, height=height, across=min(3, len(names)))
    for name, panel in zip(names, panels, strict=True):
        _panel(panel, data[data["facet"] == name], phases, series, theme)
    legend(figure, theme)
    return figure


def _by_phase(data: pd.DataFrame, phases: list[str], theme: Theme) -> Figure:
    """Return one panel per model and phase instead: a row per series, named beside it."""
    places = [(name, phase) for name in dict.fromkeys(data["facet"]) for phase in phases]
    several = data["facet"].nunique() > 1
    rows = int(data.groupby("facet")["series"].nunique().max())
    heads = [f"{phase}, {name}" if several else phase for name, phase in places]
    figure, panels = facets(heads, theme, height=1.2 + row_inches(rows) * rows, across=3)
    for (name, phase), panel in zip(places, panels, strict=True):
        here = data[data["facet"] == name]
        names = by_method(zip(here["method"], here["series"], strict=True))
        _rows(panel, here[here["phase"] == phase], [series for _, series in names], theme)
        _sizes(panel, here)
    legend(figure, theme)
    return figure


def _rows(panel: Axes, frame: pd.DataFrame, names: list[str], theme: Theme) -> None:
    colours = [theme.colour(method) for method in frame["method"]]
    guess = frame["quality"] == "predicted"
    surface = theme.paper("surface")
    panel.barh(
        [names.index(series) for series in frame["series"]],
        frame["bytes"],
        height=0.6,
        color=[surface if hollow else c for hollow, c in zip(guess, colours, strict=True)],
        edgecolor=colours,
        xerr=frame["sd_bytes"].fillna(0) if frame["sd_bytes"].notna().any() else None,
        ecolor=theme.paper("ink"),
    )
    for weights in frame["weights_bytes"].dropna().unique():
        panel.axvline(weights, color=theme.paper("muted"), linestyle=":", label="weights alone")
    panel.set_yticks(range(len(names)), [shorten(name, 34) for name in names])
    panel.tick_params(axis="y", labelcolor=theme.paper("ink"))
    panel.set_ylim(len(names) - 0.45, -0.55)


def _panel(
    panel: Axes,
    frame: pd.DataFrame,
    phases: list[str],
    series: list[tuple[str, str]],
    theme: Theme,
) -> None:
    thick = 0.8 / len(series)
    for i, (method, name) in enumerate(series):
        rows = frame[frame["series"] == name]
        places = [phases.index(phase) - 0.4 + thick * (i + 0.5) for phase in rows["phase"]]
        guess = rows["quality"] == "predicted"
        colour = theme.colour(method)
        panel.barh(
            places,
            rows["bytes"],
            height=0.88 * thick,
            color=[theme.paper("surface") if hollow else colour for hollow in guess],
            edgecolor=colour,
            xerr=rows["sd_bytes"].fillna(0) if rows["sd_bytes"].notna().any() else None,
            ecolor=theme.paper("ink"),
            label=shorten(name),
        )
    for weights in frame["weights_bytes"].dropna().unique():
        panel.axvline(weights, color=theme.paper("muted"), linestyle=":", label="weights alone")
    panel.set_yticks(range(len(phases)), phases)
    panel.tick_params(axis="y", labelcolor=theme.paper("ink"))
    panel.set_ylim(len(phases) - 0.45, -0.55)
    _sizes(panel, frame)


def _sizes(panel: Axes, frame: pd.DataFrame) -> None:
    """Give a panel its axis of bytes."""
    panel.grid(False, axis="y")
    farthest = max(float(frame["bytes"].max()), 1.0)
    panel.set_xlim(min(0.0, float(frame["bytes"].min())), farthest * 1.06)
    panel.xaxis.set_major_locator(FixedLocator(even_bytes(farthest, most=4)))
    panel.xaxis.set_major_formatter(FuncFormatter(units.tick_size))
    panel.set_xlabel(_LABELS[frame["metric"].iloc[0]])


def _place(phase: str) -> tuple[int, str]:
    return (_PHASES.index(phase) if phase in _PHASES else len(_PHASES), phase)

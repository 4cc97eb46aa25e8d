"""Predicted memory of the process against model size, with what cards hold: the whole scale."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.predict.gpus import catalogue
from reports import units
from reports.canvas import facets, legend, powers_of_two, shorten
from reports.load import Tables
from reports.theme import Theme, rank, title_of

TITLE = "Predicted memory against model size, and what cards hold"
CAPTION = (
    "Memory of the process on one device as its driver would show it, predicted without running: "
    "expected, with a band from low to high. Methods within 1 % of each other at every size share "
    "a line. Dotted: the weights alone. Grey: memory that torch can use of a card."
)
ORDER = 9
NEEDS = {"runs.parameters": 3}

CARDS = {"24 GB": "rtx-4090", "80 GB": "h100-80gb", "141 GB": "h200"}
"""What is drawn: by the size on the box, a card of ``bench/predict/gpus.toml``."""

_METRICS = {f"predicted_process_{w}_bytes": w for w in ("low", "expected", "high")}
_ALIKE = 0.01
_NAMED = 3


def data(tables: Tables) -> pd.DataFrame:
    """Return one row per family, line and size: low, expected and high bytes; and the weights."""
    numbers = tables.measurements
    if numbers.empty:
        return pd.DataFrame()
    numbers = numbers[numbers["metric"].isin(_METRICS) & (numbers["phase"] == "run")]
    facts = tables.runs.assign(family=[_family(run) for run in tables.entries])
    facts = facts[["key", "family", "parameters", "parameter_bytes"]]
    wide = numbers.assign(which=numbers["metric"].map(_METRICS)).pivot_table(
        index=["key", "model", "method", "series"], columns="which", values="value"
    )
    frame = wide.reset_index().merge(facts, on="key").dropna(subset=["parameters"])
    if frame.empty or frame["parameters"].nunique() < 3:
        return frame.iloc[:0]
    frame = frame.drop_duplicates(["family", "series", "model"])
    parts = [_merged(part) for _, part in frame.groupby("family", sort=False)]
    return pd.concat(parts, ignore_index=True).sort_values(["family", "line", "parameters"])


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return one panel per family."""
    families = list(data.groupby("family")["parameters"].max().sort_values().index[::-1])
    figure, panels = facets([_name(f) for f in families], theme, height=5.2)
    for family, panel in zip(families, panels, strict=True):
        _panel(panel, data[data["family"] == family], theme)
    legend(figure, theme)
    return figure


def _family(run: object) -> str:
    model = getattr(getattr(run, "record", None), "model", None)
    return str(model.family) if model else "other"


def _merged(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with one line for series that can't be told apart."""
    names = dict(zip(frame["series"], frame["method"], strict=True))
    lines: list[tuple[dict[float, float], list[str]]] = []
    for series in sorted(names, key=lambda s: (rank(names[s]), s)):
        rows = frame[frame["series"] == series]
        points = dict(zip(rows["parameters"], rows["expected"], strict=True))
        same = next((names for seen, names in lines if _alike(seen, points)), None)
        if same is None:
            lines.append((points, [series]))
        else:
            same.append(series)
    label = {names[0]: _joined(names) for _, names in lines}
    members = {names[0]: ", ".join(names) for _, names in lines}
    kept = frame[frame["series"].isin(label)]
    return kept.assign(line=kept["series"].map(label), methods=kept["series"].map(members))


def _alike(one: dict[float, float], other: dict[float, float]) -> bool:
    shared = one.keys() & other.keys()
    return one.keys() == other.keys() and all(
        abs(one[n] - other[n]) <= _ALIKE * one[n] for n in shared
    )


def _joined(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(title_of(name) for name in names[:_NAMED]) + more


def _panel(panel: Axes, frame: pd.DataFrame, theme: Theme) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log", base=2)
    weights = frame.drop_duplicates("model").sort_values("parameters")
    panel.plot(weights["parameters"], weights["parameter_bytes"], linestyle=":",
               color=theme.paper("muted"), label="weights alone")  # fmt: skip
    for line, rows in frame.groupby("line", sort=False):
        _line(panel, str(line), rows.sort_values("parameters"), theme)
    _axes(panel, frame, theme)


def _line(panel: Axes, line: str, rows: pd.DataFrame, theme: Theme) -> None:
    method = rows["method"].iloc[0]
    colour = theme.colour(method)
    panel.fill_between(rows["parameters"], rows["low"], rows["high"], color=colour, alpha=0.15,
                       linewidth=0)  # fmt: skip
    panel.plot(rows["parameters"], rows["expected"], color=colour, marker=theme.marker(method),
               markerfacecolor=theme.paper("surface"), markeredgewidth=1.3,
               label=shorten(line, 60))  # fmt: skip


def _axes(panel: Axes, frame: pd.DataFrame, theme: Theme) -> None:
    low, high = frame["parameter_bytes"].min() / 1.3, frame["high"].max() * 1.4
    panel.set_ylim(low, high)
    sizes = sorted(float(size) for size in frame["parameters"].unique())
    spread = max(sizes[-1] / sizes[0], 2.0)
    panel.set_xlim(sizes[0] / spread**0.05, sizes[-1] * spread**0.2)
    known = catalogue()
    for name, card in CARDS.items():
        usable = known[card].usable
        if low < usable < high:
            panel.axhline(usable, color=theme.paper("line"), linewidth=1.4, zorder=1)
            panel.annotate(name, (1, usable), xycoords=("axes fraction", "data"),
                           ha="right", va="bottom", fontsize=8.5,
                           color=theme.paper("muted"))  # fmt: skip
    panel.yaxis.set_major_locator(FixedLocator(powers_of_two(low, high)))
    panel.yaxis.set_major_formatter(FuncFormatter(units.tick_size))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_locator(FixedLocator(_apart(sizes, spread**0.11)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: units.count(x)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("Parameters")
    panel.set_ylabel("Process memory, predicted")


def _apart(sizes: Iterable[float], factor: float) -> list[float]:
    shown: list[float] = []
    for size in sizes:
        if not shown or size >= shown[-1] * factor:
            shown.append(size)
    return shown


def _name(family: str) -> str:
    return {"opt": "OPT", "roberta": "RoBERTa", "llama": "LLaMA"}.get(family, family)

"""Predicted memory of the process against model size, with what cards hold: the whole scale."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.predict.gpus import catalogue
from bench.predict.published import GIB, cells
from reports import units
from reports.canvas import WIDE, powers_of_two, quiet
from reports.load import Tables
from reports.theme import Theme, rank, title_of

TITLE = "Predicted memory against model size, and what cards hold"
CAPTION = (
    "Memory of the process on one device, however large it would have to be, as its driver would "
    "show it, predicted without running: expected, with a band from low to high. Methods within "
    "3 % of each other at every size share a line, and are named beside it. Dotted: the weights "
    "alone. Grey: memory that torch can use of a card. Hollow squares: printed in papers with "
    "their conditions, which are their own (fine-tuning with Adam is in float32 with autocast "
    "there), over all their GPUs; sizes of full cards are left out."
)
ORDER = 9
NEEDS = {"runs.parameters": 3}

CARDS = {"24 GB": "rtx-4090", "80 GB": "h100-80gb", "141 GB": "h200"}
"""What is drawn: by the size on the box, a card of ``bench/predict/gpus.toml``."""

_METRICS = {f"predicted_process_{w}_bytes": w for w in ("low", "expected", "high")}
_PRINTED = {"mezo": "mezo", "ft_adam": "ft_adamw"}
"""Published method -> ours."""
_ALIKE = 0.03
_HEIGHT, _LARGE, _SMALL, _LETTERS = 6.4, 12.5, 11.5, 34
"""Inches; points; letters in a line of the key. Read at two thirds of their size on the web."""


def data(tables: Tables) -> pd.DataFrame:
    """Return a row per line and size (kind ``predicted``): low, expected, high, weights in bytes.

    ``line`` is the method that a line is drawn as, ``methods`` all that share it. Beside them
    (kind ``published``) what papers print, in ``expected``.
    """
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
    frame = _merged(frame.drop_duplicates(["series", "model"])).assign(kind="predicted")
    made = pd.concat([frame, _published(frame)], ignore_index=True)
    return made.sort_values(["kind", "family", "line", "parameters"])


def draw(data: pd.DataFrame, theme: Theme) -> Figure:
    """Return one panel per family, all on one axis of bytes, with the lines named beside them."""
    spans = data.groupby("family")["parameters"].agg(
        lambda n: 0.55 + math.log10(n.max() / n.min())
    )
    families = list(data.groupby("family")["parameters"].max().sort_values().index[::-1])
    engine = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.02)
    figure = Figure(figsize=(WIDE, _HEIGHT), layout=engine)
    figure.set_facecolor(theme.paper("surface"))
    grid = figure.add_gridspec(1, len(families), width_ratios=[spans[f] for f in families])
    limits = data["parameter_bytes"].min() / 1.3, data[["high", "expected"]].max().max() * 1.5
    for place, family in enumerate(families):
        panel = figure.add_subplot(grid[0, place])
        quiet(panel, theme)
        if families[1:]:
            panel.set_title(_name(family), loc="left", color=theme.paper("ink"), fontsize=_LARGE)
        _panel(panel, data[data["family"] == family], limits, theme)
        _cards(panel, limits, theme, named=place == len(families) - 1)
        if place:
            panel.tick_params(labelleft=False)
        else:
            panel.set_ylabel("Process memory, predicted", fontsize=_LARGE)
    figure.supxlabel("Parameters", fontsize=_LARGE, color=theme.paper("muted"))
    _key(figure, data, theme)
    return figure


def _family(run: object) -> str:
    model = getattr(getattr(run, "record", None), "model", None)
    return str(model.family) if model else "other"


def _merged(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with one line for series that can't be told apart."""
    names = dict(zip(frame["series"], frame["method"], strict=True))
    lines: list[tuple[dict[str, float], list[str]]] = []
    for series in sorted(names, key=lambda s: (rank(names[s]), s)):
        rows = frame[frame["series"] == series]
        points = dict(zip(rows["model"], rows["expected"], strict=True))
        same = next((found for seen, found in lines if _alike(seen, points)), None)
        if same is None:
            lines.append((points, [series]))
        else:
            same.append(series)
    members = {found[0]: ", ".join(map(title_of, found)) for _, found in lines}
    kept = frame[frame["series"].isin(members)]
    return kept.assign(line=kept["series"], methods=kept["series"].map(members))


def _alike(one: dict[str, float], other: dict[str, float]) -> bool:
    return one.keys() == other.keys() and all(
        abs(one[n] - other[n]) <= _ALIKE * one[n] for n in other
    )


def _published(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what papers print of full fine-tuning of these models, with its conditions."""
    sizes = frame.drop_duplicates("model").set_index("model")
    drawn = set(frame["method"])
    rows = []
    for cell in cells():
        model, method = cell.model.lower(), _PRINTED.get(cell.method, "")
        known = cell.batch_size and cell.seq_len and not cell.saturated
        if known and cell.metric == "peak_memory_gib" and cell.tuning == "full":
            if model in sizes.index and method in drawn:
                facts = sizes.loc[model, ["family", "parameters", "parameter_bytes"]].to_dict()
                rows.append({"kind": "published", "model": model, "method": method, **facts,
                             "line": cell.paper, "expected": cell.value * GIB})  # fmt: skip
    return pd.DataFrame(rows)


def _panel(panel: Axes, frame: pd.DataFrame, limits: tuple[float, float], theme: Theme) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log", base=2)
    weights = frame.drop_duplicates("model").sort_values("parameters")
    panel.plot(weights["parameters"], weights["parameter_bytes"], linestyle=":",
               color=theme.paper("muted"))  # fmt: skip
    guessed = frame[frame["kind"] == "predicted"]
    for _, rows in guessed.groupby("line", sort=False):
        _line(panel, rows.sort_values("parameters"), theme)
    for method, rows in frame[frame["kind"] == "published"].groupby("method"):
        panel.plot(rows["parameters"], rows["expected"], color=theme.colour(str(method)),
                   marker="s", markersize=13, markerfacecolor="none", markeredgewidth=1.6,
                   linestyle="none", zorder=6)  # fmt: skip
    _axes(panel, weights, limits)


def _line(panel: Axes, rows: pd.DataFrame, theme: Theme) -> None:
    method = rows["method"].iloc[0]
    colour = theme.colour(method)
    panel.fill_between(rows["parameters"], rows["low"], rows["high"], color=colour, alpha=0.13,
                       linewidth=0)  # fmt: skip
    panel.plot(rows["parameters"], rows["expected"], color=colour, marker=theme.marker(method),
               markersize=7)  # fmt: skip


def _axes(panel: Axes, models: pd.DataFrame, limits: tuple[float, float]) -> None:
    panel.set_ylim(*limits)
    panel.yaxis.set_major_locator(FixedLocator(powers_of_two(*limits, most=14)))
    panel.yaxis.set_major_formatter(FuncFormatter(units.tick_size))
    panel.yaxis.set_minor_locator(NullLocator())
    named = zip(models["model"], models["parameters"].astype(float), strict=True)
    sizes = {parameters: _size(model, parameters) for model, parameters in named}
    panel.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    panel.xaxis.set_major_locator(FixedLocator(_apart(sorted(sizes), 1.35)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: sizes.get(x, "")))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.tick_params(labelsize=_SMALL)


def _cards(panel: Axes, limits: tuple[float, float], theme: Theme, named: bool) -> None:
    """Draw what cards hold; the last panel names them."""
    known, muted = catalogue(), theme.paper("muted")
    for name, card in CARDS.items():
        usable = known[card].usable
        if not limits[0] < usable < limits[1]:
            continue
        panel.axhline(usable, color=muted, linewidth=1.3, alpha=0.7, zorder=1)
        if named:
            panel.annotate(name, (1, usable), xycoords=("axes fraction", "data"), ha="right",
                           va="bottom", fontsize=_SMALL, color=muted)  # fmt: skip


def _key(figure: Figure, data: pd.DataFrame, theme: Theme) -> None:
    """Name the lines beside the panels, the topmost first, with all methods they stand for."""
    muted = theme.paper("muted")
    guessed = data[data["kind"] == "predicted"]
    tops = guessed.sort_values("parameters").groupby("line")["expected"].last()
    handles, labels = [], []
    for line in tops.sort_values(ascending=False).index:
        row = guessed[guessed["line"] == line].iloc[0]
        handles.append(Line2D([], [], color=theme.colour(row["method"]), markersize=7,
                              marker=theme.marker(row["method"])))  # fmt: skip
        labels.append(textwrap.fill(row["methods"], _LETTERS, break_long_words=False))
    handles.append(Line2D([], [], color=muted, linestyle=":"))
    labels.append("weights alone")
    if (data["kind"] == "published").any():
        handles.append(Line2D([], [], color=muted, marker="s", markersize=11, linestyle="none",
                              markerfacecolor="none", markeredgewidth=1.6))  # fmt: skip
        labels.append(textwrap.fill("printed in a paper, in its precision", _LETTERS))
    figure.legend(
        handles, labels, loc="outside right upper", frameon=False, fontsize=_SMALL,
        labelcolor=theme.paper("ink"), handlelength=1.6, labelspacing=0.7,
    )  # fmt: skip


def _apart(sizes: Sequence[float], factor: float) -> list[float]:
    shown: list[float] = []
    for size in sizes:
        if not shown or size >= shown[-1] * factor:
            shown.append(size)
    return shown


def _size(model: str, parameters: float) -> str:
    """Return the size of a model as its name has it.

    >>> _size("opt-1.3b", 1.32e9), _size("roberta-large", 3.55e8), _size("./mine", 1.5e9)
    ('1.3B', 'large', '1.50B')

    """
    end = model.rpartition("-")[2]
    if re.fullmatch(r"[\d.]+[mb]", end):
        return end.upper()
    return end if end in ("base", "large") else units.count(parameters)


def _name(family: str) -> str:
    return {"opt": "OPT", "roberta": "RoBERTa", "llama": "LLaMA"}.get(family, family)

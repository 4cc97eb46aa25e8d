"""What a configuration cost: device-hours and energy, with the hardware they were spent on."""

from __future__ import annotations

from collections.abc import Callable

from bench.records import Measurement
from reports import headline, units
from reports.configurations import Configuration, configurations
from reports.costs import ENERGY, HOURS, hardware, hours_metric, over_runs
from reports.load import Tables
from reports.table import Cell, Column, Table, missing, number, of_runs, table
from reports.theme import title_of

TITLE = "GPU-hours, CPU-hours and energy"
ORDER = 12
SCOPE = "section"
FOLD_ABOVE = 20

_UNFINISHED = "No run completed."
_NOT_TOLD = "Not recorded in these runs."
_NOTE = (
    "Of a run, mean over its seeds; time runs where there are any. Reserved: from start to end of "
    "the process, times all GPUs it could see or all threads it was given. Train: in steps alone. "
    "To target: in steps, until the target accuracy was first reached. Busy: while a kernel ran, "
    "or in CPU time. Counter: the board's own; polled: sampled power over time, and how far it is "
    "from the counter."
)


def rows(tables: Tables) -> Table:
    """Return one row per configuration of which hours or joules were recorded."""
    told = [c for c in configurations(tables) if any(_tells(m) for m in _all(c))]
    several = tables.runs["facet"].nunique() > 1 if told else False
    columns = {column: make for column, make in COLUMNS.items() if several or column != _MODEL}
    return table(columns, [[make(c) for make in columns.values()] for c in told], _NOTE)


def _all(c: Configuration) -> list[Measurement]:
    return [m for record in c.records for m in record.measurements]


def _tells(m: Measurement) -> bool:
    """Return whether a number is worth a row; that there is no counter of energy is not."""
    hours = m.metric.startswith(("gpu_hours_", "cpu_hours_"))
    return hours or (m.metric in ENERGY and m.value is not None)


def _method(c: Configuration) -> Cell:
    spec = c.first.spec
    name = Cell(title_of(spec.method), spec.method, c.first.setting, kind=f"method {spec.method}")
    return of_runs(name, c.records)


def _model(c: Configuration) -> Cell:
    return Cell(c.first.facet, c.first.spec.model)


def _hardware(c: Configuration) -> Cell:
    counted, held = hardware(c.runs)
    if not counted:
        return missing(_NOT_TOLD)
    return Cell(counted, f"{counted}: {held}", held)


def _hours(kind: str) -> Callable[[Configuration], Cell]:
    def cell(c: Configuration) -> Cell:
        names = [hours_metric(run.record, kind) for run in c.measured("time")]
        metric = next(filter(None, names), None)
        return _cell(c, metric, units.hours)

    return cell


def _energy(metric: str) -> Callable[[Configuration], Cell]:
    return lambda c: _cell(c, metric, units.joules, units.watt_hours)


def _polled(c: Configuration) -> Cell:
    """Tell the polled energy, and how far it is from the counter's."""
    cell = _energy("energy_polled_joules")(c)
    counted, _ = over_runs(c, "energy_joules")
    polled, _ = over_runs(c, "energy_polled_joules")
    if not counted or not polled or not counted.mean:
        return cell
    off = f"{units.signed(100 * (polled.mean / counted.mean - 1))} %"
    return number(cell.text, cell.value, cell.quality, cell.tip, f"{cell.sub}; {off}")


def _cell(
    c: Configuration,
    metric: str | None,
    words: Callable[[float], str],
    below: Callable[[float], str] | None = None,
) -> Cell:
    if not c.completed:
        return missing(_UNFINISHED)
    mean, told = over_runs(c, metric) if metric else (None, [])
    if mean is None:
        return missing(next((m.reason for m in told if m.reason), _NOT_TOLD))
    seen = [m for m in told if m.value is not None]
    tip = "; ".join(dict.fromkeys(m.source for m in seen))
    if len(seen) < len(c.measured("time")):
        tip += f"; of {units.plural(len(seen), 'run')} out of {len(c.measured('time'))}"
    sub = below(mean.mean) if below else ""
    if mean.sd:
        sub = "; ".join(filter(None, [f"sd {words(mean.sd)}", sub]))
    quality = headline.worst(m.quality for m in seen)
    return number(words(mean.mean), mean.mean, quality, tip, sub)


_MODEL = Column("model", "Model")
_HEADS = {"reserved": "Reserved", "train": "Train", "to_target": "To target", "busy": "Busy"}
COLUMNS: dict[Column, Callable[[Configuration], Cell]] = {
    Column("method", "Method"): _method,
    _MODEL: _model,
    Column("hardware", "Counted"): _hardware,
    **{Column(f"hours_{kind}", _HEADS[kind], True): _hours(kind) for kind in HOURS},
    Column("energy_joules", "Energy (counter)", True): _energy("energy_joules"),
    Column("energy_polled_joules", "Energy (polled)", True): _polled,
    Column("host_energy_joules", "Energy (processor)", True): _energy("host_energy_joules"),
}
"""Column -> what makes its cells."""

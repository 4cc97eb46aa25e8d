"""What was predicted without running: the figures of memory, and their error where measured."""

from __future__ import annotations

from bench.records import Measurement
from reports import units
from reports.configurations import Configuration, configurations
from reports.load import Tables
from reports.table import Cell, Column, Table, missing, number, of_runs, table
from reports.theme import title_of

TITLE = "Predicted memory"
ORDER = 14
SCOPE = "section"
FOLD_ABOVE = 24

_ALLOCATED = ("device_allocated_peak_bytes", "host_allocated_peak_bytes")
_PROCESS = "predicted_process_{}_bytes"
_ERROR = "predicted_minus_measured_allocated_bytes"
_NOTE = (
    "From the run's own step on tensors without data. Allocated: live tensors, as torch counts "
    "them; reserved: by a simulated allocator, ordinary and with expandable segments; least: what "
    "torch can just work in; process: with the CUDA context, expected and from low to high. On "
    "the CPU: live tensors alone. Error: predicted less measured peak of allocated memory."
)
_NOT_ON_CPU = "Of accelerators alone."
_NOT_RUN = "Not measured."

COLUMNS = (
    Column("method", "Method"),
    Column("model", "Model"),
    Column("allocated_bytes", "Allocated", True),
    Column("peak_phase", "Peak in"),
    Column("reserved_bytes", "Reserved", True),
    Column("reserved_expandable_bytes", "Expandable", True),
    Column("least_capacity_bytes", "Least", True),
    Column("process_expected_bytes", "Process", True),
    Column("error_bytes", "Error", True, "predicted less measured"),
)


def rows(tables: Tables) -> Table:
    """Return one row per configuration that was predicted."""
    told = [c for c in configurations(tables) if any(r.predicted for r in c.records)]
    return table(COLUMNS, [_row(c) for c in told], _NOTE)


def _row(c: Configuration) -> list[Cell]:
    found = next(r.predicted for r in c.records if r.predicted)
    by_name = {(m.metric, m.phase): m for m in found}
    allocated = next((m for name in _ALLOCATED if (m := by_name.get((name, "run")))), None)
    name = Cell(title_of(c.first.spec.method), c.first.spec.method, c.first.setting)
    size = units.count(c.first.parameters) if c.first.parameters else ""
    return [
        of_runs(name, c.records),
        Cell(c.first.spec.model, c.first.spec.model, size),
        _size(allocated),
        _phase(found, allocated),
        _size(by_name.get(("device_reserved_peak_bytes", "run"))),
        _size(by_name.get(("predicted_reserved_expandable_bytes", "run"))),
        _size(by_name.get(("predicted_least_capacity_bytes", "run"))),
        _process(by_name),
        _error(by_name.get((_ERROR, "run")), allocated),
    ]


def _size(m: Measurement | None, sub: str = "") -> Cell:
    if m is None or m.value is None:
        return missing(_NOT_ON_CPU)
    return number(units.size(m.value), m.value, m.quality, m.source, sub)


def _process(by_name: dict[tuple[str, str], Measurement]) -> Cell:
    low, expected, high = (
        by_name.get((_PROCESS.format(which), "run")) for which in ("low", "expected", "high")
    )
    if low is None or high is None or low.value is None or high.value is None:
        return missing(_NOT_ON_CPU)
    return _size(expected, f"{units.size(low.value)} to {units.size(high.value)}")


def _phase(found: list[Measurement], allocated: Measurement | None) -> Cell:
    """Return the innermost phase whose peak is that of the run."""
    if allocated is None:
        return missing(_NOT_ON_CPU)
    inner = [m for m in found if m.metric == allocated.metric and m.phase not in ("run", "train")]
    top = max(inner, key=lambda m: m.value or 0, default=None)
    return Cell(top.phase, top.phase) if top else missing(_NOT_ON_CPU)


def _error(error: Measurement | None, allocated: Measurement | None) -> Cell:
    if error is None or error.value is None or allocated is None or allocated.value is None:
        return missing(_NOT_RUN)
    real = allocated.value - error.value
    share = f"{units.signed(100 * error.value / real)} %" if real else ""
    text = ("-" if error.value < 0 else "+") + units.size(abs(error.value))
    return number(text, error.value, "predicted", error.source, share)

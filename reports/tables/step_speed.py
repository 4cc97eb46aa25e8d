"""How long a step takes beside its forward passes, the textbook's step and what memory allows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.records.step_speed import StepSpeed
from reports import speed, units
from reports.load import Tables
from reports.table import Cell, Column, Table, missing, number, table

TITLE = "Time of a step over the forward passes it needs"
ORDER = 6
SCOPE = "section"
FOLD_ABOVE = None

_NO_TEXTBOOK = "The textbook step was not taken."
_NOT_COUNTED = "Bytes were not counted."
_NO_LIMIT = "Memory was not timed, or a backward pass hides it."
_NOTE = (
    "Medians over rounds, each taken beside forward passes in inference mode right before and "
    "after it; below: range. CPU: time of all threads, which a busy machine disturbs less. "
    "Faster: than the step written straight from the MeZO paper with torch's generator, by "
    "forward pass needed. Limit: noise for free, weights read and written once a pass at the "
    "bandwidth of a multiplication in place, for the passes declared and for two. Peak: tensor "
    "bytes of a step and its weights over those of a forward pass; extra: the difference; "
    "outside: the most alive outside the forward passes."
)


def rows(tables: Tables) -> Table:
    """Return one row per step; what could not be run is told in the note."""
    found = speed.frame(tables.speeds)
    cells = [[make(row) for make in COLUMNS.values()] for row in found.to_dict("records")]
    told = [_NOTE, *_refused(tables.speeds), *_idle(tables.speeds)]
    return table(COLUMNS, cells, " ".join(told) if cells else "")


def _refused(records: tuple[StepSpeed, ...]) -> list[str]:
    return [
        f"{speed.label(step)} could not be run: {step.reason}"
        for r in records
        for step in r.steps
        if step.reason
    ]


def _idle(records: tuple[StepSpeed, ...]) -> list[str]:
    return [
        f"⚑ {speed.label(step)}: {units.plural(step.idle_updates, 'update')} had a coefficient of "
        "0, and did less than they should."
        for r in records
        for step in r.steps
        if step.idle_updates
    ]


def _step(row: Any) -> Cell:
    kind = "" if row["textbook"] else f"method {row['method']}"
    return Cell(row["step"], row["step"], kind=kind)


def _case(row: Any) -> Cell:
    return Cell(row["case"], row["case"])


def _forwards(row: Any) -> Cell:
    return number(str(row["forwards"]), row["forwards"])


def _ratio(row: Any) -> Cell:
    return _spread(row, "ratio")


def _cpu_ratio(row: Any) -> Cell:
    return _spread(row, "cpu_ratio")


def _spread(row: Any, name: str) -> Cell:
    middle, low, high = (row[f"{name}_{part}"] for part in ("median", "low", "high"))
    sub = f"{low:.3f}{units.DASH}{high:.3f}"
    return number(f"{middle:.3f}", middle, tip=units.plural(row["rounds"], "round"), sub=sub)


def _faster(row: Any) -> Cell:
    if row["textbook"]:
        return Cell(units.DASH)
    name = "times_faster_than_textbook"
    middle, low, high = (row[f"{name}_{part}"] for part in ("median", "low", "high"))
    if pd.isna(middle):
        return missing(_NO_TEXTBOOK)
    return number(f"{middle:.2f} x", middle, sub=f"{low:.2f}{units.DASH}{high:.2f}")


def _limit(row: Any) -> Cell:
    limit, of_two = row["limit"], row["limit_of_two_passes"]
    if pd.isna(limit):
        return missing(_NO_LIMIT)
    sub = f"2 passes: {of_two:.3f}"
    passes = f"{int(row['noise_passes'])} noise passes declared"
    return number(f"{limit:.3f}", limit, "estimated", tip=passes, sub=sub)


def _peak(row: Any) -> Cell:
    step, forward = row["step_peak_bytes"], row["forward_peak_bytes"]
    if pd.isna(step) or pd.isna(forward):
        return missing(_NOT_COUNTED)
    weights = row["weights_bytes"]
    share = (weights + step) / (weights + forward)
    return number(f"{share:.3f} x", share, sub=f"{_signed(step - forward)} extra")


def _outside(row: Any) -> Cell:
    outside = row["outside_forwards_bytes"]
    if pd.isna(outside):
        return missing(_NOT_COUNTED)
    return number(units.size(outside), int(outside))


def _signed(n: float) -> str:
    return ("\N{MINUS SIGN}" if n < 0 else "") + units.size(abs(n))


COLUMNS = {
    Column("step", "Step"): _step,
    Column("case", "Case"): _case,
    Column("forwards", "Forward passes", True): _forwards,
    Column("ratio", "Wall ratio", True): _ratio,
    Column("cpu_ratio", "CPU ratio", True): _cpu_ratio,
    Column("limit", "Limit", True): _limit,
    Column("times_faster_than_textbook", "Faster", True): _faster,
    Column("peak_ratio", "Peak", True): _peak,
    Column("outside_forwards_bytes", "Outside", True): _outside,
}
"""Column -> what makes its cells."""

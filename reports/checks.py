"""Predicted memory beside the real, as rows: one for each run that ``bench prediction`` made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from bench.records.prediction_check import (
    TOLERANCE_BYTES,
    CheckedCell,
    PredictionCheck,
)
from reports import units
from reports.run import machine_of
from reports.table import Cell, missing, number
from reports.theme import rank, title_of

SECTION = "prediction_check"
TITLE = "Predicted memory beside the real"
NONE_MADE = "Not in the grid."
_WORDS = {"agrees": "agree", "known": "known", "differs": "differ", "unable": "not compared"}


def frame(checks: Iterable[PredictionCheck]) -> pd.DataFrame:
    """Return one row per run, methods in their order; empty where there is none.

    Errors are traced minus real bytes: of the run's peak, and of the phase that is farthest off.
    """
    rows = [_row(check, one) for check in checks for one in check.cells]
    rows.sort(key=lambda row: rank(str(row["method"])))
    return pd.DataFrame(rows)


def common(checks: Iterable[PredictionCheck]) -> str:
    """Return what all runs have in common, in words."""
    several = list(checks)
    told = [
        {f"models of {check.layers} blocks" for check in several},
        {machine_of(check.environment, "cpu") for check in several},
        {f"torch {check.environment.packages.get('torch', 'unknown')}" for check in several},
    ]
    same = [next(iter(words)) for words in told if len(words) == 1]
    return ", ".join([*same, f"equal within {units.size(TOLERANCE_BYTES)}"])


def findings(checks: Iterable[PredictionCheck]) -> Iterator[str]:
    """Say how many runs agree, and what most of the others are."""
    for check in checks:
        counts = check.counts()
        total = units.plural(len(check.cells), "run")
        told = (
            f"Predicted and real peaks of all phases are equal within "
            f"{units.size(TOLERANCE_BYTES)} in {counts['agrees']} of {total} on the CPU"
        )
        rest = [
            f"{counts['known']} differ as is known" if counts["known"] else "",
            f"{counts['differs']} differ" if counts["differs"] else "",
            f"{counts['unable']} could not be compared" if counts["unable"] else "",
        ]
        yield "; ".join([told, *filter(None, rest)]) + "."
        made = [one for one in check.cells if one.reason is None]
        if made:
            worst = max(made, key=lambda one: abs(one.error_bytes))
            if not worst.error_bytes:
                yield "Every run's peak is predicted to the byte."
                continue
            yield (
                f"The largest error of a run's peak is {signed(worst.error_bytes)} of "
                f"{units.size(worst.peak_bytes)} (`{worst.cell.name}`)."
            )


def cell(part: pd.DataFrame) -> Cell:
    """Return the table cell of some runs: the largest error of a peak, and how they ended."""
    if part.empty:
        return missing(NONE_MADE)
    counts = part["verdict"].value_counts()
    told = ", ".join(f"{counts[name]} {word}" for name, word in _WORDS.items() if name in counts)
    made = part[part["verdict"] != "unable"]
    kind = "alarm" if {"differs", "unable"} & set(counts.index) else ""
    if made.empty:
        return Cell(units.NA, sub=told, quality="unavailable", tip=str(part["reason"].iloc[0]))
    worst, phase = _farthest(made, "error_bytes"), _farthest(made, "phase_error_bytes")
    tip = f"farthest phase: {signed(phase['phase_error_bytes'])} in {phase['phase']}"
    error = int(worst["error_bytes"])
    return number(signed(error), error, "exact", tip=tip, sub=told, kind=kind)


def peaks(part: pd.DataFrame) -> Cell:
    """Return the table cell of the real peaks of some runs: their range."""
    made = part[part["verdict"] != "unable"]
    if made.empty:
        return missing("No run was made.")
    low, high = int(made["peak_bytes"].min()), int(made["peak_bytes"].max())
    text = f"{mib(low)}{units.DASH}{mib(high)} MiB" if low != high else f"{mib(low)} MiB"
    return number(text, high)


def farthest_phase(part: pd.DataFrame) -> Cell:
    """Return the table cell of the phase that is farthest off in some runs."""
    made = part[part["verdict"] != "unable"]
    if made.empty:
        return missing("No run was made.")
    worst = _farthest(made, "phase_error_bytes")
    error = int(worst["phase_error_bytes"])
    return number(signed(error), error, sub=str(worst["phase"]) if error else "")


def mib(n: float) -> str:
    """Return bytes in MiB, without a unit."""
    return units.digits(n / units.MIB)


def signed(n: float) -> str:
    """Return an error in bytes with its sign, in the unit that suits it."""
    sign = "+" if n > 0 else "\N{MINUS SIGN}" if n < 0 else ""
    return sign + units.size(abs(n))


def _farthest(made: pd.DataFrame, column: str) -> Any:
    """Return the row with the largest error; `Any`: pandas does not type the rows of a frame."""
    return max(made.to_dict("records"), key=lambda row: abs(row[column]))


def _row(check: PredictionCheck, one: CheckedCell) -> dict[str, Any]:
    errors = one.errors() or {"": 0}
    phase = max(errors, key=lambda name: abs(errors[name]))
    named = one.cell
    return {
        "variant": named.variant,
        "method": named.method,
        "title": title_of(named.method),
        "family": named.family,
        "model": one.model,
        "dtype": named.dtype,
        "attention": named.attention,
        "tuning": named.tuning,
        "verdict": check.verdict(one),
        "error_bytes": one.error_bytes,
        "peak_bytes": one.peak_bytes,
        "phase": phase,
        "phase_error_bytes": errors[phase],
        "seconds": one.seconds,
        "reason": one.reason,
    }

"""What came of one check: what was known, what the meter said, and how far it may be off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

State = Literal["ok", "wrong", "unavailable", "told"]


class Verdict(BaseModel):
    """One check of one meter."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    meter: str
    """What was asked, as a user knows it."""
    case: str
    """What was done."""
    state: State
    """``told`` is a figure that nobody can know beforehand, such as the latency of a call."""
    unit: str = "1"
    """B, s, J, ..."""
    expected: float | None = None
    """What is true."""
    measured: float | None = None
    """What the meter said; the value furthest off where it was asked several times."""
    tolerance: float | None = None
    """How far the two may differ, in the same unit."""
    detail: str = ""
    """Why, in words."""


def judge(
    meter: str, case: str, expected: float, measured: float, tolerance: float, unit: str = "B"
) -> Verdict:
    """Return whether ``measured`` is what was known, within ``tolerance`` (both in ``unit``).

    >>> judge("ruler", "a metre", 1.0, 1.2, 0.1, "m").state
    'wrong'

    """
    off = abs(measured - expected)
    return Verdict(
        meter=meter,
        case=case,
        state="ok" if off <= tolerance else "wrong",  # NaN is wrong
        unit=unit,
        expected=expected,
        measured=measured,
        tolerance=tolerance,
    )


def furthest(
    meter: str,
    case: str,
    expected: float,
    measured: Iterable[float],
    tolerance: float,
    unit: str = "B",
) -> Verdict:
    """Return the verdict on the value that is furthest off; there must be one."""
    worst = max(measured, key=lambda value: abs(value - expected))
    return judge(meter, case, expected, worst, tolerance, unit)


def missing(meter: str, case: str, reason: str) -> Verdict:
    """Return that the meter can't be had here, and why."""
    return Verdict(meter=meter, case=case, state="unavailable", detail=reason)


def broken(meter: str, case: str, reason: str) -> Verdict:
    """Return that the meter did what it must not, and what."""
    return Verdict(meter=meter, case=case, state="wrong", detail=reason)


def told(meter: str, case: str, measured: float, unit: str, detail: str = "") -> Verdict:
    """Return a figure that has nothing to be compared with."""
    return Verdict(
        meter=meter, case=case, state="told", unit=unit, measured=measured, detail=detail
    )

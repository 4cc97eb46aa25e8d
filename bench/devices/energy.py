"""Joules of a window: the driver's counter first, the integral of polled power beside it.

The counter steps about every 100 ms, and power sensors look part of the time only (25 % on A100
and H100: Yang et al., arXiv 2312.02741), so a window shorter than 60 steps is suspect, and so are
counter and polling that differ by more than a tenth. Board energy, as the driver reports it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from bench.devices.answer import Answer, Doubt, Unavailable, doubt

STEP_SECONDS = 0.1
STEPS = 60
DIFFERENCE = 0.10


@dataclass(frozen=True)
class Energy:
    """Of one device over one window."""

    counted: Answer[float] | Unavailable
    """Difference of the counter, in J."""
    polled: Answer[float] | Unavailable
    """Integral of the polled power, in J."""
    doubts: tuple[Doubt, ...] = ()


def integral(samples: Sequence[tuple[float, float]]) -> Answer[float] | Unavailable:
    """Return the joules under (seconds, watts) samples, joined by straight lines."""
    if len(samples) < 2:
        return Unavailable("power was read less than twice in this window")
    joules = sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in itertools.pairwise(samples))
    return Answer(joules, "J", "integral of polled power")


def window(
    before: Answer[float] | Unavailable,
    after: Answer[float] | Unavailable,
    seconds: float,
    samples: Sequence[tuple[float, float]] = (),
) -> Energy:
    """Return the energy between two readings of the counter, ``seconds`` apart."""
    polled = integral(samples)
    counted, doubts = _counted(before, after, seconds)
    if isinstance(counted, Answer) and isinstance(polled, Answer):
        largest = max(counted.value, polled.value)
        if abs(counted.value - polled.value) > DIFFERENCE * largest:
            text = f"the counter says {counted.value:.1f} J, polled power {polled.value:.1f} J"
            doubts = (*doubts, doubt("energy_counter_vs_polled", text))
    return Energy(counted, polled, doubts)


def _counted(
    before: Answer[float] | Unavailable, after: Answer[float] | Unavailable, seconds: float
) -> tuple[Answer[float] | Unavailable, tuple[Doubt, ...]]:
    if isinstance(before, Unavailable):
        return before, ()
    if isinstance(after, Unavailable):
        return after, ()
    joules = after.value - before.value
    if joules < 0:
        text = f"the counter fell from {before.value:.1f} to {after.value:.1f} J: driver reloaded"
        return Unavailable(text, flag="energy_counter_reset"), (
            doubt("energy_counter_reset", text),
        )
    short = seconds < STEPS * STEP_SECONDS
    if joules == 0:
        # No board draws nothing. Short: the counter did not step yet. Long: it is dead.
        flag = "energy_window_short" if short else "energy_counter_reset"
        text = f"the counter did not move in {seconds:.2f} s"
        return Unavailable(text, flag=flag), (doubt(flag, text),)
    text = f"{seconds:.2f} s are less than {STEPS} steps of the counter: repeat the work"
    doubts = (doubt("energy_window_short", text),) if short else ()
    return Answer(joules, "J", before.source, "exact"), doubts

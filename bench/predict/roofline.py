"""Estimate and GPU-hours from the operations and bytes of a traced step: a band, not a number.

For each phase ``compute = sum over dtypes of flops / (peak mfu)`` and ``memory = bytes /
(bandwidth mbu)``. Phases are totals, so what overlaps inside one is not known: the least it takes
is the larger of the two at good efficiencies, the most their sum at poor ones, and their sum at
middling ones is expected. No phase is faster than its kernels can be launched. Uncalibrated, this
is right to about a factor of two; measured runs make it better (:func:`calibrated`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bench.predict.gpus import Gpu
from bench.predict.log import Log, Work
from bench.records import UserError

LAUNCH_SECONDS = 5e-6
"""Of one kernel by the host, one after another."""
OUTSIDE_STEPS = frozenset({"run", "load", "evaluate"})
"""Phases of a trace that a training step does not have."""


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks that real kernels reach: flops (mfu) and bandwidth (mbu).

    The band is that of published training runs (mfu) and of copies and sweeps (mbu).
    """

    mfu: tuple[float, float, float] = (0.7, 0.5, 0.3)
    """Good, middling, poor."""
    mbu: tuple[float, float, float] = (0.9, 0.8, 0.6)
    source: str = "assumed: mfu 0.3-0.7, mbu 0.6-0.9"


@dataclass(frozen=True)
class Estimate:
    """A band: low, expected, high; of seconds, GPU-hours or money, as its place says."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Estimate) -> Estimate:
        """Add the bounds."""
        sums = (self.low + other.low, self.expected + other.expected, self.high + other.high)
        return Estimate(*sums)

    def __mul__(self, times: float) -> Estimate:
        """Repeat."""
        return Estimate(self.low * times, self.expected * times, self.high * times)


@dataclass(frozen=True)
class Cost:
    """What a training run takes."""

    step: Estimate
    """Seconds."""
    phases: dict[str, Estimate]
    """Seconds of each phase, in one step or for the one time that it comes."""
    gpu_hours: Estimate
    price: Estimate | None = None
    """In the currency of the catalogue's price; None where there is none."""
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        return asdict(self)


def seconds(work: Work, gpu: Gpu, efficiency: Efficiency | None = None) -> Estimate:
    """Return how long one phase takes on one GPU."""
    efficiency = efficiency or Efficiency()
    compute, memory = _ideal(work, gpu)
    launch = work.ops * LAUNCH_SECONDS
    good, middling, poor = (
        (compute / mfu, memory / mbu)
        for mfu, mbu in zip(efficiency.mfu, efficiency.mbu, strict=True)
    )
    return Estimate(max(*good, launch), max(sum(middling), launch), max(sum(poor), launch))


def step(work: Mapping[str, Work], gpu: Gpu, efficiency: Efficiency | None = None) -> Estimate:
    """Return how long the phases take one after another."""
    total = Estimate(0.0, 0.0, 0.0)
    for each in work.values():
        total += seconds(each, gpu, efficiency)
    return total


def cost(
    log: Log,
    gpu: Gpu,
    *,
    steps: int,
    gpus: int = 1,
    efficiency: Efficiency | None = None,
    evaluations: int = 0,
) -> Cost:
    """Return step time and GPU-hours of a run.

    Args:
        log: the trace; ``facts["steps"]`` and ``facts["evaluations"]`` say how many of them it
            holds (1 if they do not).
        gpu: the card.
        steps: optimiser steps of the run.
        gpus: cards held; those that wait for each other cost as those that work. Layers laid out
            over cards run one card at a time, so the step takes as long as on one.
        efficiency: shares of the peaks.
        evaluations: passes as traced in phase ``evaluate``.

    """
    traced = int(log.facts.get("steps", 1))
    inner = {name: each for name, each in log.work.items() if name not in OUTSIDE_STEPS}
    phases = {name: seconds(each, gpu, efficiency) * (1 / traced) for name, each in inner.items()}
    for name in OUTSIDE_STEPS & log.work.keys():
        times = int(log.facts.get("evaluations", 1)) if name == "evaluate" else 1
        phases[name] = seconds(log.work[name], gpu, efficiency) * (1 / times)
    once = step(inner, gpu, efficiency) * (1 / traced)
    total = once * steps
    if evaluations and "evaluate" in phases:
        total += phases["evaluate"] * evaluations
    hours = total * (gpus / 3600)
    price = None if gpu.price_per_hour is None else hours * gpu.price_per_hour
    slow = {d for w in inner.values() for d in w.flops if d not in gpu.tflops}
    notes = tuple(f"{gpu.title} has no units for {d}: counted as float32" for d in sorted(slow))
    return Cost(once, phases, hours, price, notes)


@dataclass(frozen=True)
class Timed:
    """One measured run on a card: the work of its phases, and the seconds that they took."""

    work: Mapping[str, Work]
    """Of each phase, for as many steps as ``seconds`` are of."""
    seconds: Mapping[str, float]
    """Of each phase, or of any of them."""


def calibrated(runs: Sequence[Timed], gpu: Gpu, spread: float = 0.15) -> Efficiency:
    """Return the efficiencies that measured runs had on one card.

    From phases with enough of both kinds of work, mfu and mbu by least squares, each run counting
    alike; where that has no sensible solution, as with one phase, one factor on both of the
    middling ones. A phase that half of its time launches kernels tells nothing of either, and is
    left out.

    Args:
        runs: what was measured, in one dtype.
        gpu: the card it was measured on.
        spread: half width of the band around what was measured, at the least; wider where a run
            lies farther off.

    Raises:
        UserError: nothing measured belongs to the work, or all of it is launching kernels.

    """
    told = [_rows(run, gpu) for run in runs]
    told = [rows for rows in told if rows]
    if not told:
        phases = sorted({phase for run in runs for phase in run.seconds})
        raise UserError(
            f"Expected measured seconds of phases that keep {gpu.title} at work, got "
            f"{', '.join(phases) or 'none'}, too short beside the launching of their kernels. "
            "Time a larger model or batch."
        )
    scale = [sum(took for *_, took in rows) for rows in told]
    scaled = [
        np.array(row) / total for rows, total in zip(told, scale, strict=True) for row in rows
    ]
    table = np.array(scaled)
    mfu, mbu = _solve(table[:, :2], table[:, 2])
    ratios = [
        total / sum(compute / mfu + memory / mbu for compute, memory, _ in rows)
        for rows, total in zip(told, scale, strict=True)
    ]
    fast, slow = min(1 - spread, *ratios), max(1 + spread, *ratios)
    return Efficiency(
        (min(mfu / fast, 1.0), mfu, mfu / slow),
        (min(mbu / fast, 1.0), mbu, mbu / slow),
        f"{len(told)} timed run{'s' if len(told) > 1 else ''} on {gpu.title}",
    )


def _rows(run: Timed, gpu: Gpu) -> list[tuple[float, float, float]]:
    """Return seconds of arithmetic and of traffic at the peaks, and those measured, by phase."""
    found = []
    for phase, took in run.seconds.items():
        work = run.work.get(phase)
        if work is not None and took > 2 * work.ops * LAUNCH_SECONDS:
            found.append((*_ideal(work, gpu), took))
    return [row for row in found if row[0] + row[1] > 0]


def _solve(ideal: Any, took: Any) -> tuple[float, float]:
    """Return mfu and mbu for which ``ideal / efficiency`` is what was measured."""
    if len(ideal) > 1 and np.linalg.matrix_rank(ideal) == 2:
        inverse = np.linalg.lstsq(ideal, took, rcond=None)[0]
        if (inverse >= 1).all():
            return float(1 / inverse[0]), float(1 / inverse[1])
    middling = np.array([1 / Efficiency().mfu[1], 1 / Efficiency().mbu[1]])
    factor = float((ideal @ middling).sum() / took.sum())
    return min(Efficiency().mfu[1] * factor, 1.0), min(Efficiency().mbu[1] * factor, 1.0)


def _ideal(work: Work, gpu: Gpu) -> tuple[float, float]:
    """Return seconds of arithmetic and of traffic at the peaks."""
    compute = sum(flops / gpu.flops(dtype) for dtype, flops in work.flops.items())
    return compute, work.bytes / gpu.bandwidth

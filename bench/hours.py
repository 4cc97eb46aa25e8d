"""GPU-hours and CPU-hours of a run: what was held, trained, needed for a target, and busy.

No single standard exists (see docs/measuring.md): four are told, each with the hardware named
beside it. Only of time runs; the times of a memory run mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.records import Environment, Evaluation, Measurement, Quality, RunSpec
from bench.sampler import Window

_HOUR = 3600.0
_RESUMED = "the run was resumed, and what its killed processes took is not known"


@dataclass(frozen=True)
class Course:
    """What hours are made of: a run as its record will tell it."""

    spec: RunSpec
    environment: Environment
    wall_seconds: float
    """Of the process."""
    run_seconds: float
    """In which the phase ``run`` was open."""
    step_seconds: Sequence[float]
    cpu_seconds: float | None
    """Of the process; None where it died before it could say."""
    resumed: bool = False

    @classmethod
    def of(
        cls,
        spec: RunSpec,
        environment: Environment,
        wall_seconds: float,
        events: Sequence[dict[str, Any]],
        windows: Sequence[Window],
    ) -> Course:
        """Read it from what a run told, and from the windows of its newest process."""
        spent = [e["seconds"] for e in events if e["event"] == "cpu"]
        return cls(
            spec=spec,
            environment=environment,
            wall_seconds=wall_seconds,
            run_seconds=sum(w.end_ns - w.begin_ns for w in windows if w.name == "run") / 1e9,
            step_seconds=[e["seconds"] for e in events if e["event"] == "step"],
            cpu_seconds=spent[-1] if spent else None,
            resumed=any(e["event"] == "flag" and e["name"] == "resumed" for e in events),
        )


def hours(
    course: Course, evaluations: Sequence[Evaluation], measured: Sequence[Measurement]
) -> list[Measurement]:
    """Return the four figures; none for a run without its device, or that measured memory.

    Args:
        course: of the run.
        evaluations: in the order made.
        measured: of the run; ``gpu_busy_share`` of each device is looked for among them.

    """
    if course.spec.measure != "time":
        return []
    if course.spec.device == "cpu":
        cores = course.environment.threads
        held = _Held("cpu", cores, f"{cores} cores of {course.environment.cpu}")
        return [*_clock(course, evaluations, held), _cpu_busy(course, held)]
    names = course.environment.devices
    if not names:
        return []
    held = _Held("gpu", len(names), _counted(names))
    shares = [m for m in measured if m.metric == "gpu_busy_share"]
    return [*_clock(course, evaluations, held), _gpu_busy(course, shares, held)]


@dataclass(frozen=True)
class _Held:
    """The hardware that a run held."""

    kind: str
    count: int
    words: str

    def told(
        self, name: str, seconds: float, source: str, quality: Quality = "exact"
    ) -> Measurement:
        return self._measurement(name, seconds / _HOUR, quality, f"{source} {self.words}", None)

    def missing(self, name: str, reason: str) -> Measurement:
        return self._measurement(name, None, "unavailable", "none", reason)

    def _measurement(
        self, name: str, value: float | None, quality: Quality, source: str, reason: str | None
    ) -> Measurement:
        return Measurement(
            metric=f"{self.kind}_hours_{name}",
            phase="run",
            value=value,
            unit="h",
            quality=quality,
            source=source,
            reason=reason,
        )


def _clock(course: Course, evaluations: Sequence[Evaluation], held: _Held) -> list[Measurement]:
    """What follows from the clock and the number of devices alone."""
    wall, steps = course.wall_seconds, sum(course.step_seconds)
    return [
        held.missing("reserved", _RESUMED)
        if course.resumed
        else held.told("reserved", wall * held.count, "wall time of the process x"),
        held.told("train", steps * held.count, "step seconds x"),
        _to_target(course.spec.target_accuracy, evaluations, held),
    ]


def _to_target(
    target: float | None, evaluations: Sequence[Evaluation], held: _Held
) -> Measurement:
    if target is None:
        return held.missing("to_target", "no target is named: set target_accuracy in the suite")
    seen = [(e.correct / e.n, e) for e in evaluations if e.n]
    for accuracy, evaluation in seen:
        if accuracy >= target:
            seconds = evaluation.train_seconds or 0.0
            source = f"step seconds up to step {evaluation.step} x"
            return held.told("to_target", seconds * held.count, source)
    best = f"the best of {len(seen)} is {max(seen)[0]:.4g}" if seen else "there is none"
    return held.missing("to_target", f"not reached: no evaluation came to {target:g}; {best}")


def _gpu_busy(course: Course, shares: Sequence[Measurement], held: _Held) -> Measurement:
    missing = next((m.reason for m in shares if m.value is None), None)
    if missing or not shares:
        return held.missing("busy", missing or "the driver's utilisation was not sampled")
    if course.resumed:
        return held.missing("busy", _RESUMED)
    total = sum(m.value for m in shares if m.value is not None)
    words = "utilisation integrated over the run, of"
    return held.told("busy", total * course.run_seconds, words, "sampled")


def _cpu_busy(course: Course, held: _Held) -> Measurement:
    if course.resumed:
        return held.missing("busy", _RESUMED)
    if course.cpu_seconds is None:
        return held.missing("busy", "the process died before it could say its CPU time")
    return held.told("busy", course.cpu_seconds, "CPU time of the process, among")


def _counted(names: Sequence[str]) -> str:
    return " + ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))

"""Hours and joules of runs: the numbers of a whole job, from those of its devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.records import Measurement, RunRecord
from reports import headline
from reports.configurations import Configuration, Spread, spread
from reports.run import Run, machine_of

HOURS = ("reserved", "train", "to_target", "busy")
"""Kinds of hours: ``gpu_hours_<kind>`` where GPUs were used, else ``cpu_hours_<kind>``."""
ENERGY = ("energy_joules", "energy_polled_joules", "host_energy_joules")


def of_job(record: RunRecord, metric: str, phase: str = "run") -> Measurement | None:
    """Return a number of the whole job: its own, or else the sum over its devices.

    Where one of several devices has none there is no sum, and its reason is given.
    """
    found = [m for m in record.measurements if m.metric == metric and m.phase == phase]
    whole = [m for m in found if m.device is None]
    lacking = [m for m in found if m.value is None]
    if whole or lacking or len(found) < 2:
        return next(iter([*whole, *lacking, *found]), None)
    total = sum(m.value or 0 for m in found)
    return found[0].model_copy(update={
        "value": total, "device": None, "quality": headline.worst(m.quality for m in found),
        "source": f"{found[0].source}, summed over {len(found)} devices",
    })  # fmt: skip


def hours_metric(record: RunRecord, kind: str) -> str | None:
    """Return which metric has these hours of a run; None where neither has."""
    names = {m.metric for m in record.measurements}
    return next((n for n in (f"gpu_hours_{kind}", f"cpu_hours_{kind}") if n in names), None)


def over_runs(c: Configuration, metric: str) -> tuple[Spread | None, list[Measurement]]:
    """Return the mean of a job's number over completed runs, time runs first, and the numbers."""
    found = [of_job(run.record, metric) for run in c.measured("time")]
    told = [m for m in found if m is not None]
    return spread(m.value for m in told), told


def hardware(runs: Sequence[Run]) -> tuple[str, str]:
    """Return what the hours are counted by, and what a run held: GPUs, or threads of a CPU."""
    for run in runs:
        environment, metric = run.record.environment, hours_metric(run.record, "reserved")
        if environment is None or metric is None:
            continue
        if metric.startswith("gpu"):
            models = Counter(environment.devices)
            return "GPU-hours", ", ".join(f"{n} x {model}" for model, n in models.items())
        threads = "1 thread" if environment.threads == 1 else f"{environment.threads} threads"
        return "CPU-hours", f"{threads} of {machine_of(environment, 'cpu')}"
    return "", ""

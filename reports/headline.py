"""The one memory number of a run, and how it came about.

On a device it is the peak of allocated memory. On the host it is the peak of the resident set
minus the resident set after the libraries were loaded: what the run itself took.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.records import Measurement, RunRecord
from reports import units

BASES = {
    "device": "peak allocated device memory",
    "host": "peak host memory above the loaded libraries",
}
"""Basis of a headline -> what it is, in words."""

_PHASES = ("run", "train")
_ORDER = ("exact", "sampled", "estimated", "predicted", "unavailable")


@dataclass(frozen=True)
class Peak:
    """A memory headline. ``bytes`` is None where there is none, and then ``reason`` says why."""

    bytes: float | None
    basis: str
    """A key of `BASES`."""
    quality: str = "unavailable"
    source: str = ""
    reason: str = ""
    absolute_bytes: float | None = None
    """Host: with interpreter and libraries. Device: what the allocator had reserved."""
    baseline_bytes: float | None = None
    """Host: the resident set after loading the libraries."""


def worst(qualities: Iterable[str]) -> str:
    """Return the least trusted of some qualities."""
    return max(qualities, key=_ORDER.index, default="unavailable")


def measured(record: RunRecord) -> Peak:
    """Return the measured headline of a run; only a completed run has one."""
    peak = _headline(record.measurements, record.spec.device)
    if record.status == "completed":
        return peak
    seen = f" It had reached {units.size(peak.bytes)}." if peak.bytes is not None else ""
    reason = f"The run ended: {record.status.replace('_', ' ')}.{seen}"
    return Peak(None, peak.basis, reason=reason, baseline_bytes=peak.baseline_bytes)


def reached(record: RunRecord) -> float | None:
    """Return the peak of a run however it ended, in bytes; None where it was not measured."""
    return _headline(record.measurements, record.spec.device).bytes


def predicted(record: RunRecord) -> Peak:
    """Return the headline computed without running; the measured baseline may stand in."""
    baseline = [m for m in record.measurements if m.metric == "host_baseline_bytes"]
    own = [m for m in record.predicted if m.metric == "host_baseline_bytes"]
    return _headline([*record.predicted, *([] if own else baseline)], record.spec.device)


def live(measurements: list[Measurement]) -> Measurement | None:
    """Return the peak of live tensors on the host: what is predicted of a run on the CPU."""
    found = _find(measurements, "host_allocated_peak_bytes")
    return found if found and found.value is not None else None


def refused_at(record: RunRecord) -> float | None:
    """Return the bytes at which a run went out of memory: its limit, else what it wanted."""
    if record.status != "out_of_memory":
        return None
    failure = record.failure
    limit = failure.bytes_limit if failure else None
    if limit or record.spec.memory_limit_bytes:
        return limit or record.spec.memory_limit_bytes
    if failure and failure.bytes_in_use is not None:
        return failure.bytes_in_use + (failure.bytes_requested or 0)
    return None


def basis_of(device: str) -> str:
    """Return the basis that suits a device: its own memory, or the host's."""
    return "host" if device == "cpu" else "device"


def _headline(measurements: list[Measurement], device: str) -> Peak:
    on_device = _find(measurements, "device_allocated_peak_bytes")
    host = _find(measurements, "host_peak_bytes")
    baseline = _find(measurements, "host_baseline_bytes")
    if on_device and on_device.value is not None:
        reserved = _find(measurements, "device_reserved_peak_bytes")
        absolute = reserved.value if reserved else None
        return Peak(on_device.value, "device", on_device.quality, _source(on_device), "", absolute)
    if host and host.value is not None and baseline and baseline.value is not None:
        return Peak(
            host.value - baseline.value,
            "host",
            worst([host.quality, baseline.quality]),
            _source(host),
            "",
            host.value,
            baseline.value,
        )
    return Peak(None, basis_of(device), reason=_why_not(on_device, host, baseline))


def _find(measurements: list[Measurement], metric: str) -> Measurement | None:
    """Return the metric of the whole run, else of its training; one with a value if there is."""
    named = [m for m in measurements if m.metric == metric]
    found = [m for phase in _PHASES for m in named if m.phase == phase]
    valued = [m for m in found if m.value is not None]
    return next(iter(valued or found), None)


def _source(measurement: Measurement) -> str:
    return f"{measurement.source}, phase '{measurement.phase}'"


def _why_not(*candidates: Measurement | None) -> str:
    reasons = [m.reason for m in candidates if m and m.value is None and m.reason]
    return " ".join(reasons) or "Not measured in this run."

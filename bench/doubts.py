"""Flags that follow from a run's own numbers, whatever its device."""

from __future__ import annotations

from collections.abc import Iterable

from bench.devices.answer import Doubt
from bench.records import Flag, Measurement, RunSpec, Status


def of_allocator(spec: RunSpec, status: Status, told: Iterable[Measurement]) -> list[Flag]:
    """Say so where torch's allocator was refused memory and went on all the same.

    It then gave its cache back and asked again: the peak it reserved is the device's size, not
    what the method takes. In a run that ended out of memory that is the result, no doubt.
    """
    if spec.measure != "memory" or status == "out_of_memory":
        return []
    values = {m.metric: m.value or 0 for m in told}
    retries = values.get("device_alloc_retries", 0)
    errors = values.get("device_ooms", 0)
    if retries <= 0 and errors <= 0:
        return []
    text = (
        "torch's allocator was refused memory, emptied its cache and asked again "
        f"{retries} times (and gave up {errors} times) in a run that went on: "
        "reserved peaks are those of a full device"
    )
    return [Flag(name="oom_retry", severity="invalid", text=text)]


def flags(doubts: Iterable[Doubt]) -> list[Flag]:
    """Return doubts as a record holds them."""
    return [Flag(name=d.name, severity=d.severity, text=d.text) for d in doubts]


def once(several: Iterable[Flag]) -> list[Flag]:
    """Leave out repetitions."""
    return list({(f.name, f.text): f for f in several}.values())

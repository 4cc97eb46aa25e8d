"""A GiB on a GPU: does everything that counts the memory of a device see it come and go?"""

from __future__ import annotations

from collections.abc import Iterator

from bench import trackers
from bench.devices.answer import Answer, Unavailable
from bench.devices.nvml import Device
from bench.selfcheck.verdict import Verdict, broken, judge, missing, told
from bench.selfcheck.work import Work

GIB, MIB = 1 << 30, 1 << 20
Bytes = Answer[int] | Unavailable
TOLERANCE_BYTES = 2 * MIB
"""CUDA hands memory out in pieces of 2 MiB."""


def verdicts(device: Device, work: Work, label: str) -> Iterator[Verdict]:
    """Allocate 1 GiB and let it go; ``label`` names the device in what is printed."""
    before = _Seen(device, work)
    strangers = before.others
    work.begin()
    tracker = work.tracker()
    tracker.settle()  # what it gives back must not be taken off the GiB
    up = _Seen(device, work)
    yield from _context(before, up, label)
    tracker.reset()
    idle = {reading.metric: reading.value for reading in tracker.read()}
    tracker.reset()
    work.allocate(GIB)
    yield from _allocator(tracker, idle, label)
    held = _Seen(device, work)
    strangers = max(strangers, held.others)
    peak = device.accounting_peak()
    work.release()
    after = _Seen(device, work)
    strangers = max(strangers, after.others)
    meter = f"NVML device memory, {label}"
    if strangers:  # what they take or give back would be taken for ours
        why = f"{strangers} other processes use this GPU: run it again where it is idle"
        yield missing(meter, "1 GiB", why)
    else:
        yield _step(meter, "1 GiB allocated", up.used, held.used, GIB)
        yield _step(meter, "1 GiB given back", held.used, after.used, -GIB)
    meter = f"NVML process memory, {label}"
    yield _step(meter, "1 GiB allocated", up.own, held.own, GIB)
    yield _step(meter, "1 GiB given back", held.own, after.own, -GIB)
    yield _accounting(peak, held, label)


class _Seen:
    """The device at one moment."""

    def __init__(self, device: Device, work: Work) -> None:
        self.reserved = work.reserved_bytes()
        self.used: Bytes = device.read(("memory",))["device_used_bytes"]
        self.own = device.own_memory(self.reserved)
        found = device.others()
        self.others = 0 if isinstance(found, Unavailable) else len(found)
        # Own number not listed: a container, and then the one that came is most likely ours.
        if isinstance(self.own, Unavailable) and self.others:
            self.others -= 1 if self.reserved else 0


def _context(before: _Seen, up: _Seen, label: str) -> Iterator[Verdict]:
    if before.used.value is None or up.used.value is None:
        return
    context = up.used.value - before.used.value - (up.reserved - before.reserved)
    text = "device used - before it - torch's reserved: context, kernels, workspaces of libraries"
    yield told(f"CUDA context, {label}", "after a matrix product", context, "B", text)


def _allocator(
    tracker: trackers.Tracker, idle: dict[str, int | float], label: str
) -> Iterator[Verdict]:
    meter = f"torch allocator, {label}"
    seen = {r.metric: r.value - idle[r.metric] for r in tracker.read() if r.metric in idle}
    peaks = {m: v for m, v in seen.items() if m.endswith("_peak_bytes")}
    if not peaks:
        yield broken(meter, "1 GiB allocated", "the tracker read no peak")
    for metric, value in peaks.items():
        kind = metric.removeprefix("device_").removesuffix("_peak_bytes")
        # Tensors are rounded up to 512 B, what is reserved to 2 MiB.
        tolerance = TOLERANCE_BYTES if kind == "reserved" else 512
        yield judge(meter, f"1 GiB, {kind}", GIB, value, tolerance)


def _step(meter: str, case: str, before: Bytes, after: Bytes, expected: int) -> Verdict:
    if isinstance(before, Unavailable):
        return missing(meter, case, before.reason)
    if isinstance(after, Unavailable):
        return missing(meter, case, after.reason)
    return judge(meter, case, expected, after.value - before.value, TOLERANCE_BYTES)


def _accounting(peak: Bytes, held: _Seen, label: str) -> Verdict:
    meter, case = f"NVML accounting, {label}", "peak since the process began"
    if isinstance(peak, Unavailable):
        return missing(meter, case, peak.reason)
    if peak.value < held.reserved:
        text = f"{peak.value} B, and torch alone held {held.reserved} B"
        return broken(meter, case, text)
    if held.own.value is None:
        return told(meter, case, peak.value, "B", "exact; nothing to compare it with")
    return judge(meter, case, held.own.value, peak.value, TOLERANCE_BYTES)

"""The GPUs that NVML shows: what each tells, how exact, how fast; and whether it is idle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.checkup.finding import Finding, State
from bench.devices.answer import Answer, Unavailable
from bench.devices.gauges import NAMES
from bench.devices.nvml import GAUGES, Capability, Device, Devices

IDLE_PERCENT = 2
IDLE_BYTES = 300 << 20

_SUBJECTS = (*GAUGES, "violations", "ecc")


def findings(devices: Devices) -> Iterator[Finding]:
    """Look at every device; a driver that hangs, or none, is a row."""
    if devices.unavailable is not None:
        yield Finding(what="NVML", state="unavailable", detail=devices.unavailable.reason)
    else:
        yield Finding(what="NVML", state="ok", detail=_versions(devices[0]))
    for doubt in devices.doubts:
        yield Finding(what="NVML", state="note", detail=f"{doubt.name}: {doubt.text}")
    for number, device in enumerate(devices):
        what = f"GPU {number}"
        text = f"{device.name}, {device.uuid}" + (", a MIG instance" if device.is_mig else "")
        yield Finding(what=what, state="ok", detail=text)
        yield idle(device, f"{what} idle")
        for one in _capabilities(device):
            yield Finding(what=f"{what} {one.what}", state=one.state, detail=one.detail)


def facts(devices: Devices) -> list[dict[str, Any]]:
    """Return everything about every device, for a program."""
    return [
        {
            "uuid": device.uuid,
            "name": device.name,
            "index": device.index,
            "mig": device.is_mig,
            "facts": {
                name: {"value": None, "reason": found.reason}
                if isinstance(found, Unavailable)
                else {"value": found.value, "unit": found.unit}
                for name, found in device.static().items()
            },
            "capabilities": {
                name: {**vars(one), "quality": quality}
                for name, (one, quality) in _table(device).items()
            },
        }
        for device in devices
    ]


def idle(device: Device, what: str) -> Finding:
    """Look whether somebody else uses the device."""
    found, listed = device.read(("memory", "load")), device.others()
    used, busy = found["device_used_bytes"], found["kernel_time_percent"]
    seen, unknown = [], []
    if isinstance(listed, Unavailable):
        unknown.append(f"processes ({listed.reason})")
    elif listed:
        numbers = ", ".join(str(process.pid) for process in listed)
        seen.append(f"{len(listed)} other processes ({numbers})")
    for answer, name in ((used, "memory"), (busy, "load")):
        if isinstance(answer, Unavailable):
            unknown.append(f"{name} ({answer.reason})")
    if isinstance(busy, Answer) and busy.value > IDLE_PERCENT:
        seen.append(f"a kernel ran in {busy.value} % of the time")
    if isinstance(used, Answer) and used.value > IDLE_BYTES:
        seen.append(f"{used.value / 2**20:.0f} MiB used")
    state: State = "note" if seen else "unavailable" if unknown else "ok"
    text = "; ".join(seen) or "no other process, no load, no memory used"
    if unknown:
        text = "; ".join([*seen, f"not known: {', '.join(unknown)}"])
    return Finding(what=what, state=state, detail=text)


def _versions(device: Device) -> str:
    found = device.static()
    wanted = (("driver", "driver"), ("CUDA", "cuda_driver"), ("nvidia-ml-py", "binding"))
    known = [f"{word} {found[key].value}" for word, key in wanted if found[key].value is not None]
    return ", ".join(known) or "it answers"


def _table(device: Device) -> dict[str, tuple[Capability, State]]:
    """Return every value's capability, and the quality that it has."""
    able = device.capabilities()
    found = device.read(_SUBJECTS)
    table: dict[str, tuple[Capability, State]] = {}
    for name, one in able.items():
        answer = found.get(name)
        # What is not read with the rest is the driver's account, which misses nothing.
        quality: State = answer.quality if isinstance(answer, Answer) else "exact"
        table[name] = (one, quality if one.works else "unavailable")
    return table


def _capabilities(device: Device) -> Iterator[Finding]:
    """Fold the values of a subject that have the same state into one row."""
    table = _table(device)
    subjects = {**{s: NAMES[s] for s in _SUBJECTS}, "accounting": ("accounting_peak_bytes",)}
    for subject, names in subjects.items():
        rows: dict[tuple[State, str], list[str]] = {}
        for name in names:
            one, state = table[name]
            rows.setdefault((state, one.reason or ""), []).append(name)
        for (state, reason), several in rows.items():
            which = "" if len(several) == len(names) else f" ({', '.join(several)})"
            sources = dict.fromkeys(table[name][0].source for name in several)
            slowest = max(table[name][0].microseconds for name in several)
            text = reason or f"{', '.join(sources)}, {slowest:.0f} us"
            yield Finding(what=f"{subject}{which}", state=state, detail=text)

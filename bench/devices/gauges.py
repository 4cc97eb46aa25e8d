"""What one device tells when asked: each function a subject, each value an answer or a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from bench.devices import throttling
from bench.devices.answer import Answer, Unavailable
from bench.devices.session import Session

Found = dict[str, Answer[Any] | Unavailable]

_POWER_INSTANT = 186
_SCOPES = {0: "GPU", 1: "module"}
_MIG_POWER = Unavailable(
    "power and energy exist for the whole board: a MIG instance's share can't be told",
    flag="energy_not_attributable",
)
_MIG_LOAD = Unavailable("NVML keeps no utilisation of a MIG instance")


def memory(session: Session, handle: Any, mig: bool) -> Found:
    """Bytes used, free, in all, and kept by the driver, which version 1 counts as used."""
    v2 = getattr(pynvml, "nvmlMemory_v2", 0x02000028)
    got, _ = session.first(
        ("nvmlDeviceGetMemoryInfo", handle, v2), ("nvmlDeviceGetMemoryInfo", handle)
    )
    names = ("used", "free", "total", "reserved")
    keys = {name: _memory_key(name) for name in names}
    if isinstance(got, Unavailable):
        return {key: got for key in keys.values()}
    new = hasattr(got, "reserved")
    source = f"nvmlDeviceGetMemoryInfo{'_v2' if new else ' v1, with what the driver keeps'}"
    found: Found = {keys[n]: Answer(int(getattr(got, n)), "B", source) for n in names if new}
    if not new:
        found = {keys[n]: Answer(int(getattr(got, n)), "B", source) for n in names[:3]}
        text = "version 1 of the memory query counts what the driver keeps as used"
        found[keys["reserved"]] = Unavailable(text, flag="function_missing")
    return found


def power(session: Session, handle: Any, mig: bool) -> Found:
    """Watts: over the last second (newer boards), and at once (field 186)."""
    if mig:
        return {"power_watts": _MIG_POWER, "power_instant_watts": _MIG_POWER}
    usage = _one(session, "nvmlDeviceGetPowerUsage", handle, "W", lambda mw: mw / 1e3)
    values = session.fields(handle, [(_POWER_INSTANT, scope) for scope in _SCOPES])
    instant = values[0]
    for value, scope in zip(values, _SCOPES.values(), strict=True):
        if not isinstance(value, Unavailable):
            instant = Answer(value / 1e3, "W", f"field {_POWER_INSTANT}, scope {scope}")
            break
    return {"power_watts": usage, "power_instant_watts": instant}


def energy(session: Session, handle: Any, mig: bool) -> Found:
    """Joules since the driver was loaded. A counter that reads 0 is no counter."""
    if mig:
        return {"energy_joules": _MIG_POWER}
    name = "nvmlDeviceGetTotalEnergyConsumption"
    got = _one(session, name, handle, "J", lambda mj: mj / 1e3, "exact")
    if got.value == 0:
        got = Unavailable(f"{name} reads 0 J: the driver does not count")
    return {"energy_joules": got}


def load(session: Session, handle: Any, mig: bool) -> Found:
    """Per cent of time in which a kernel ran, and in which the memory bus was busy."""
    if mig:
        return {"kernel_time_percent": _MIG_LOAD, "memory_bus_time_percent": _MIG_LOAD}
    name = "nvmlDeviceGetUtilizationRates"
    return {
        "kernel_time_percent": _one(session, name, handle, "%", lambda u: int(u.gpu)),
        "memory_bus_time_percent": _one(session, name, handle, "%", lambda u: int(u.memory)),
    }


def temperature(session: Session, handle: Any, mig: bool) -> Found:
    """Degrees Celsius of the chip."""
    got, source = session.first(
        ("nvmlDeviceGetTemperatureV", handle, pynvml.NVML_TEMPERATURE_GPU),
        ("nvmlDeviceGetTemperature", handle, pynvml.NVML_TEMPERATURE_GPU),
    )
    return {"temperature_celsius": _given(got, "degC", source)}


def clocks(session: Session, handle: Any, mig: bool) -> Found:
    """MHz now, and the bits of why they are not higher (see ``throttling.names``)."""
    kinds = {"sm_clock_mhz": pynvml.NVML_CLOCK_SM, "memory_clock_mhz": pynvml.NVML_CLOCK_MEM}
    found: Found = {}
    for key, kind in kinds.items():
        name = "nvmlDeviceGetClockInfo"
        found[key] = _given(session.ask(name, handle, kind), "MHz", name)
    got, source = session.first(
        ("nvmlDeviceGetCurrentClocksEventReasons", handle),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", handle),
    )
    found["clock_reasons"] = _given(got, "1", source)
    return found


def violations(session: Session, handle: Any, mig: bool) -> Found:
    """Seconds that each reason held since the driver was loaded (see ``throttling``)."""
    return dict(throttling.counters(session, handle))


def ecc(session: Session, handle: Any, mig: bool) -> Found:
    """Memory errors since the driver was loaded: corrected, and not."""
    name, since = "nvmlDeviceGetTotalEccErrors", pynvml.NVML_VOLATILE_ECC
    kinds = {
        "ecc_corrected": pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
        "ecc_uncorrected": pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
    }
    return {
        key: _given(session.ask(name, handle, kind, since), "1", name, "exact")
        for key, kind in kinds.items()
    }


def accounting_peak(
    session: Session, handle: Any, mig: bool, pid: int
) -> Answer[int] | Unavailable:
    """Return the most that process ``pid`` ever held, exact: the driver raises it itself."""
    if mig:
        return Unavailable("the driver keeps no accounts in MIG mode")
    mode = session.ask("nvmlDeviceGetAccountingMode", handle)
    if isinstance(mode, Unavailable):
        return mode
    if not mode:
        return Unavailable("accounting is off; root can switch it on: nvidia-smi -am 1")
    stats = session.ask("nvmlDeviceGetAccountingStats", handle, pid)
    if isinstance(stats, Unavailable):
        return stats
    if stats.maxMemoryUsage in (0, 2**64 - 1):
        return Unavailable(f"the driver's account of process {pid} holds no memory")
    return Answer(int(stats.maxMemoryUsage), "B", "nvmlDeviceGetAccountingStats", "exact")


NAMES = {
    "memory": tuple(f"device_{name}_bytes" for name in ("used", "free", "total", "driver")),
    "process": ("process_used_bytes",),
    "power": ("power_watts", "power_instant_watts"),
    "energy": ("energy_joules",),
    "load": ("kernel_time_percent", "memory_bus_time_percent"),
    "temperature": ("temperature_celsius",),
    "clocks": ("sm_clock_mhz", "memory_clock_mhz", "clock_reasons"),
    "violations": throttling.COUNTERS,
    "ecc": ("ecc_corrected", "ecc_uncorrected"),
}
"""Names of the values that each subject has, whether or not they can be had."""

SUBJECTS: dict[str, Callable[[Session, Any, bool], Found]] = {
    "memory": memory,
    "power": power,
    "energy": energy,
    "load": load,
    "temperature": temperature,
    "clocks": clocks,
    "violations": violations,
    "ecc": ecc,
}


def _memory_key(name: str) -> str:
    return "device_driver_bytes" if name == "reserved" else f"device_{name}_bytes"


def _given(
    got: Any, unit: str, source: str, quality: Any = "sampled"
) -> Answer[Any] | Unavailable:
    return got if isinstance(got, Unavailable) else Answer(got, unit, source, quality)


def _one(
    session: Session,
    function: str,
    handle: Any,
    unit: str,
    convert: Callable[[Any], Any],
    quality: Any = "sampled",
) -> Answer[Any] | Unavailable:
    got = session.ask(function, handle)
    return got if isinstance(got, Unavailable) else Answer(convert(got), unit, function, quality)

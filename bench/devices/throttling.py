"""Why a GPU ran slower than it could: the reasons now, and how long each has held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.devices.answer import Answer, Doubt, Unavailable, doubt
from bench.devices.session import Session

REASONS = {
    0x1: "idle",
    0x2: "clocks set by an application",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
"""Bits of NVML's clocks event reasons (nvml.h)."""

HARMLESS = 0x1 | 0x2 | 0x100

_COUNTERS = {
    "power_cap_seconds": (74, 0),
    "thermal_seconds": (75, 1),
    "sync_boost_seconds": (76, 2),
    "board_limit_seconds": (77, 3),
    "reliability_seconds": (79, 5),
    "software_thermal_seconds": (269, None),
    "hardware_thermal_seconds": (270, None),
    "hardware_power_brake_seconds": (271, None),
}  # name -> field, policy of nvmlDeviceGetViolationStatus
COUNTERS = tuple(_COUNTERS)


def names(mask: int) -> list[str]:
    """Return the reasons in words; unknown bits as numbers."""
    known = [word for bit, word in REASONS.items() if mask & bit]
    unknown = mask & ~sum(REASONS)
    return known + ([f"unknown reasons {unknown:#x}"] if unknown else [])


def counters(session: Session, handle: Any) -> dict[str, Answer[float] | Unavailable]:
    """Return the seconds that each reason has held since the driver was loaded.

    Their differences miss nothing between two readings, unlike the reasons themselves. They come
    from the field values, and from nvmlDeviceGetViolationStatus where a driver has none of those.
    """
    values = session.fields(handle, [(field, 0) for field, _ in _COUNTERS.values()])
    found: dict[str, Answer[float] | Unavailable] = {}
    for (name, (field, policy)), value in zip(_COUNTERS.items(), values, strict=True):
        source = f"field {field}"
        if isinstance(value, Unavailable) and policy is not None:
            status = session.ask("nvmlDeviceGetViolationStatus", handle, policy)
            if not isinstance(status, Unavailable):
                value, source = status.violationTime, "nvmlDeviceGetViolationStatus"
        if isinstance(value, Unavailable):
            found[name] = value
        else:
            found[name] = Answer(value / 1e9, "s", source, "exact")
    return found


def throttled(
    before: Mapping[str, Answer[float] | Unavailable],
    after: Mapping[str, Answer[float] | Unavailable],
) -> list[Doubt]:
    """Return what slowed the GPU between two readings of the counters, shortest spells too.

    A power cap is the normal state of a loaded board; the rest is not.
    """
    doubts = []
    for name, end in after.items():
        start = before.get(name)
        if not isinstance(start, Answer) or not isinstance(end, Answer):
            continue
        seconds = end.value - start.value
        if seconds > 0:
            flag = "power_capped" if name == "power_cap_seconds" else "throttled"
            what = name.removesuffix("_seconds").replace("_", " ")
            doubts.append(doubt(flag, f"{what} held for {seconds:.3f} s"))
    return doubts

"""What a source hands to the loop: values with the moment they were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.devices.answer import Answer, Unavailable

Clock = Callable[[], int]
"""Nanoseconds of ``time.monotonic_ns``, or of a test."""


class Reading(NamedTuple):
    """One value, or why there is none."""

    t_ns: int
    source: str
    """host, nvml or rapl."""
    device: str
    """UUID of a GPU, name of a RAPL package, empty for the host."""
    metric: str
    answer: Answer[Any] | Unavailable


def together(
    t_ns: int, source: str, device: str, found: Mapping[str, Answer[Any] | Unavailable]
) -> list[Reading]:
    """Return what was read at one moment."""
    return [Reading(t_ns, source, device, name, answer) for name, answer in found.items()]


@dataclass
class Stream:
    """Readings that are due at the same rhythm."""

    name: str
    seconds: float
    """Asked for; the loop takes longer where reading is expensive."""
    read: Callable[[], list[Reading]] = field(repr=False)

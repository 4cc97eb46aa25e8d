"""What a trace says about a run: numbers by phase, and doubts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bench.devices.answer import Doubt

Quality = Literal["exact", "sampled", "unavailable"]


@dataclass(frozen=True)
class Found:
    """One number, or why there is none."""

    metric: str
    """As ``bench.records`` defines it."""
    phase: str
    value: float | int | None
    """None where quality is ``unavailable``; never 0 for missing."""
    unit: str
    """B, J, s, 1 or degC."""
    quality: Quality
    source: str
    reason: str | None = None
    device: str | None = None
    """UUID of the one device it belongs to; None is the whole job, or its process."""


@dataclass(frozen=True)
class Sampled:
    """All of it, of one run."""

    found: list[Found] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)

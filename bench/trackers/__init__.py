"""Meters of memory, a file each; the folder is the register.

A file has ``TITLE``, ``METRICS`` (name -> definition; those that more than one part of zometer
uses stand in ``bench.records.METRICS``), and ``tracker(device) -> Tracker``, which
raises :class:`Unavailable` with the reason where this machine or device has no such thing. One
that works only in processes started for it has ``elsewhere(device) -> str`` too, which says so;
``MODES`` names the modes of a run that it is for, where these are not both.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from bench.records import METRICS, Metric, Quality
from zo_core import register


class Unavailable(Exception):
    """This tracker can't measure here; the message says why."""


@dataclass(frozen=True)
class Reading:
    """One value of a metric over the window since the last reset."""

    metric: str
    value: int | float
    quality: Quality
    source: str


class Tracker(Protocol):
    """Reads maxima over a window. Windows don't nest: the monitor folds them into phases."""

    def settle(self) -> None:
        """Bring the memory to rest between a run's main phases: garbage was just collected."""
        ...

    def reset(self) -> None:
        """Begin a window: what was used before counts only as far as it is still held."""
        ...

    def read(self) -> list[Reading]:
        """Return the maxima since the reset."""
        ...

    def baseline(self) -> list[Reading]:
        """Return what is held now; called once, before the model is loaded."""
        ...

    def totals(self) -> list[Reading]:
        """Return counters of the whole run so far."""
        ...


def modules() -> dict[str, ModuleType]:
    """Import and return every tracker file, by name. An import error is raised."""
    return register.modules(sys.modules[__name__])


def definitions() -> dict[str, Metric]:
    """Return every metric that a run may hold."""
    brought = [module.METRICS for module in modules().values()]
    return METRICS | {name: metric for metrics in brought for name, metric in metrics.items()}


def available(device: str) -> tuple[dict[str, Tracker], dict[str, str]]:
    """Return the trackers that work for ``device``, and the reasons of those that don't."""
    working: dict[str, Tracker] = {}
    reasons: dict[str, str] = {}
    for name, module in modules().items():
        try:
            working[name] = module.tracker(device)
        except Unavailable as error:
            reasons[name] = str(error)
    return working, reasons

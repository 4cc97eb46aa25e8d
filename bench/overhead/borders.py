"""What one phase costs by itself, and how many a step has: a bound that no noise can hide."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.cell import EVENTS
from bench.monitor import Monitor
from bench.overhead.watching import Step, Watched, Written, monitor_of

_BATCHES = 40
_PHASES = 25


def phases(step: Step, device: str) -> int:
    """Take one step as in a time run, and count the phases that it opens."""
    with _monitor(device) as (monitor, written):
        before = written.count
        Watched(step, monitor, written).take()
        borders = written.count - before - 1  # the step itself is written down too
    return borders // 2  # each phase is entered and left


def seconds(device: str) -> float:
    """Return what it costs to open and close a phase of the engine, the median of many."""
    taken = []
    with _monitor(device) as (monitor, _), monitor.phase("train"):
        for _ in range(_BATCHES):
            start = time.perf_counter()
            for _ in range(_PHASES):
                with monitor.phase("perturb"):
                    pass
            taken.append((time.perf_counter() - start) / _PHASES)
    return statistics.median(taken)


@contextmanager
def _monitor(device: str) -> Iterator[tuple[Monitor, Written]]:
    with tempfile.TemporaryDirectory(prefix="zometer-monitor-") as name:
        path = Path(name) / EVENTS
        with path.open("a", encoding="utf-8", buffering=1) as file:
            written = Written(file)
            monitor = monitor_of("time", device, written)
            with monitor.phase("run"):
                yield monitor, written

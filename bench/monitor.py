"""Phases of a run, and what was measured in each.

Two modes that never mix. In a *memory* run every border of a phase reads and resets all peaks (and
trims the heap), so each phase has its own peak, and no time is reported. In a *time* run nothing
is touched between the start and the end: phases are timed, and only the phase ``run`` has a peak.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bench.records import METRICS, Measure, Measurement, Metric
from bench.trackers import Reading, Tracker

MAIN_PHASES = ("run", "load", "train", "evaluate")
"""Phases of the harness; all others are the engine's, inside ``train``."""


class Monitor:
    """Collects readings and seconds by phase; phases nest and repeat.

    Args:
        mode: "memory" or "time".
        trackers: by name.
        unavailable: reasons, by metric, of what can't be measured here.
        definitions: of every metric that a tracker may read.
        synchronize: waits for the device, called at the borders of main phases.
        on_phase: told the innermost phase whenever it changes.
        on_failure: called when the first exception leaves a phase, before anything is unwound.

    """

    def __init__(
        self,
        mode: Measure,
        trackers: Mapping[str, Tracker],
        unavailable: Mapping[str, str] | None = None,
        definitions: Mapping[str, Metric] = METRICS,
        synchronize: Callable[[], None] = lambda: None,
        on_phase: Callable[[str], None] = lambda name: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the baseline."""
        self._mode = mode
        self._trackers = trackers
        self._unavailable = unavailable or {}
        self._definitions = definitions
        self._synchronize = synchronize
        self._on_phase = on_phase
        self._on_failure = on_failure
        self._open: list[tuple[str, dict[str, Reading]]] = []
        self._peaks: dict[tuple[str, str], Reading] = {}
        self._seconds: dict[str, float] = {}
        self.failed_phase: str | None = None
        """Innermost phase that an exception left first."""
        for tracker in trackers.values():
            tracker.settle()
            tracker.reset()
        self._baseline = [r for t in trackers.values() for r in t.baseline()]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Open a phase; this is also the ``span`` of the engine."""
        self._on_phase(name)
        self._border(name)
        self._open.append((name, {}))
        start = time.perf_counter()
        try:
            yield
            if name in MAIN_PHASES:
                self._synchronize()
        except BaseException:
            if self.failed_phase is None:
                self.failed_phase = name
                self._on_failure()
            raise
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
            try:
                self._border(name)
            finally:
                self._keep(*self._open.pop())
                if self._open:
                    self._on_phase(self._open[-1][0])

    def measurements(self) -> list[Measurement]:
        """Return everything measured so far, as the record wants it."""
        found = [self._measurement(r, "run") for r in self._baseline]
        found += [self._measurement(r, phase) for (phase, _), r in self._peaks.items()]
        found += [self._missing(metric, reason) for metric, reason in self._unavailable.items()]
        if self._mode == "time":
            found += [
                self._measurement(Reading("phase_seconds", s, "exact", "time.perf_counter"), phase)
                for phase, s in self._seconds.items()
            ]
        return found

    def _border(self, name: str) -> None:
        # What happened since the last border happened inside every phase now open.
        if self._mode == "time" and name != "run":
            return
        for tracker in self._trackers.values():
            for reading in tracker.read():
                for _, peaks in self._open:
                    _raise_to(peaks, reading.metric, reading)
            if name in MAIN_PHASES:
                tracker.settle()
            tracker.reset()

    def _keep(self, name: str, peaks: dict[str, Reading]) -> None:
        for metric, reading in peaks.items():
            _raise_to(self._peaks, (name, metric), reading)

    def _measurement(self, reading: Reading, phase: str) -> Measurement:
        return Measurement(
            metric=reading.metric,
            phase=phase,
            value=reading.value,
            unit=self._definitions[reading.metric].unit,
            quality=reading.quality,
            source=reading.source,
        )

    def _missing(self, metric: str, reason: str) -> Measurement:
        return Measurement(
            metric=metric,
            phase="run",
            value=None,
            unit=self._definitions[metric].unit,
            quality="unavailable",
            source="none",
            reason=reason,
        )


def _raise_to(peaks: dict[Any, Reading], key: Any, reading: Reading) -> None:
    if key not in peaks or reading.value > peaks[key].value:
        peaks[key] = reading

"""Phases of a run, and what was measured in each.

Two modes that never mix. In a *memory* run every border of a phase reads and resets all peaks, and
main phases are synchronised, collected and trimmed at theirs, so each phase has its own peak, and
no time is reported. In a *time* run nothing is touched between the start and the end: phases are
timed (by events on an accelerator, which never wait), and only the phase ``run`` has a peak.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bench.records import METRICS, Measure, Measurement, Metric
from bench.stopwatch import Clock, HostClock, PhaseTimes, Stopwatch
from bench.trackers import Reading, Tracker

MAIN_PHASES = ("run", "load", "resume", "train", "evaluate")
"""Phases of the harness, the device idle at both ends; all others are the engine's."""

OnPhase = Callable[[str, int, int], None]


class Monitor:
    """Collects readings and seconds by phase; phases nest and repeat.

    Args:
        mode: "memory" or "time".
        trackers: by name.
        unavailable: reasons, by metric, of what can't be measured here.
        definitions: of every metric that a tracker may read.
        synchronize: waits for the device, called at the end of main phases.
        on_phase: told the innermost phase, its depth and since when (monotonic nanoseconds),
            whenever it changes; after the last ("end", -1, ...). Where the stopwatch defers, of
            phases inside a step once the step has been waited for; of a failed step never.
        on_failure: called when the first exception leaves a phase, before anything is unwound.
        stopwatch: takes the time of phases inside main ones, in a time run.
        clock: takes the time of main phases, monotonic nanoseconds.

    """

    def __init__(
        self,
        mode: Measure,
        trackers: Mapping[str, Tracker],
        unavailable: Mapping[str, str] | None = None,
        definitions: Mapping[str, Metric] = METRICS,
        synchronize: Callable[[], None] = lambda: None,
        on_phase: OnPhase = lambda name, depth, t_ns: None,
        on_failure: Callable[[], None] = lambda: None,
        stopwatch: Stopwatch | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Take the baseline."""
        self._mode = mode
        self._trackers = trackers
        self._unavailable = unavailable or {}
        self._definitions = definitions
        self._synchronize = synchronize
        self._on_phase = on_phase
        self._on_failure = on_failure
        # A memory run stops at every border anyway; its borders are told at once, so that one
        # whom the kernel kills has said in which phase.
        self._inner: Stopwatch = HostClock(clock)
        if mode == "time" and stopwatch is not None:
            self._inner = stopwatch
        self._clock = clock
        self._times = PhaseTimes()
        self._waiting: list[tuple[str | None, Any]] = []
        self._open: list[tuple[str, dict[str, Reading]]] = []
        self._peaks: dict[tuple[str, str], Reading] = {}
        self._totals: list[Reading] = []
        self.failed_phase: str | None = None
        """Innermost phase that an exception left first."""
        self._settle()
        for tracker in trackers.values():
            tracker.reset()
        self._baseline = [r for t in trackers.values() for r in t.baseline()]
        self._inner.anchor()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Open a phase; this is also the ``span`` of the engine."""
        main = name in MAIN_PHASES
        self._border(name)
        self._cross(name, main)  # after: what a sampler sees from now on is the phase's own
        self._open.append((name, {}))
        try:
            yield
            if main:
                self._synchronize()
        except BaseException:
            if self.failed_phase is None:
                self.failed_phase = name
                self._waiting.clear()  # the device may not answer any more
                self._on_failure()
            raise
        finally:
            try:
                self._border(name)
            finally:
                self._keep(*self._open.pop())
                self._cross(None, main)

    def measurements(self) -> list[Measurement]:
        """Return everything measured so far, as the record wants it."""
        self._tell_waiting(self._clock())
        found = [self._measurement(r, "run") for r in (*self._baseline, *self._totals)]
        found += [self._measurement(r, phase) for (phase, _), r in self._peaks.items()]
        found += [self._missing(metric, reason) for metric, reason in self._unavailable.items()]
        return found + self._seconds() if self._mode == "time" else found

    def _seconds(self) -> list[Measurement]:
        times = (
            ("phase_seconds", self._times.seconds()),
            ("phase_self_seconds", self._times.own_seconds()),
        )
        return [
            self._measurement(Reading(metric, s, "exact", self._source(phase)), phase)
            for metric, seconds in times
            for phase, s in seconds.items()
        ]

    def _source(self, phase: str) -> str:
        return HostClock.source if phase in MAIN_PHASES else self._inner.source

    def _cross(self, entered: str | None, main: bool) -> None:
        """Note that a phase was entered, or (None) the innermost one left."""
        if main or not self._inner.deferred:
            t_ns = self._clock()  # first: writing down what waits is no part of the phase
            self._tell_waiting(t_ns)
            self._tell(entered, t_ns)
            if main and entered is not None:
                self._inner.anchor()
        elif self.failed_phase is None:
            self._waiting.append((entered, self._inner.mark()))

    def _tell_waiting(self, until_ns: int) -> None:
        if not self._waiting:
            return
        self._synchronize()
        waiting, self._waiting = self._waiting, []
        for entered, mark in waiting:  # clocks that are tied together differ by microseconds
            self._tell(entered, min(self._inner.nanoseconds(mark), until_ns))

    def _tell(self, entered: str | None, t_ns: int) -> None:
        now = self._times.leave(t_ns) if entered is None else self._times.enter(entered, t_ns)
        self._on_phase(*now, t_ns)

    def _border(self, name: str) -> None:
        # What happened since the last border happened inside every phase now open.
        if self._mode == "time" and name != "run":
            return
        for tracker in self._trackers.values():
            for reading in tracker.read():
                for _, peaks in self._open:
                    _raise_to(peaks, reading.metric, reading)
        if name == "run":
            self._totals = [r for t in self._trackers.values() for r in t.totals()]
        if name in MAIN_PHASES and self._mode == "memory":
            self._settle()
        for tracker in self._trackers.values():
            tracker.reset()

    def _settle(self) -> None:
        gc.collect()  # once, however many trackers there are
        for tracker in self._trackers.values():
            tracker.settle()

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

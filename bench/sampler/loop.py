"""The loop: what is due is read and written, on a schedule that does not drift.

Clock and sleeping belong to the caller, so that tests play hours in a second.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.devices import rapl
from bench.devices.answer import Answer
from bench.sampler import notes
from bench.sampler.gpus import Gpus
from bench.sampler.host import Host
from bench.sampler.rapl import Rapl
from bench.sampler.readings import Clock, Reading, Stream
from bench.sampler.trace import TRACE, Row, TraceWriter

SHARE = 0.05
"""Most of the time that reading may take: every stream is slowed down alike to stay below it."""


@dataclass(frozen=True)
class Settings:
    """What is asked of the helper."""

    folder: str
    pid: int
    visible: str | None
    interval_seconds: float = 0.05
    nvml: bool = True
    powercap: str = str(rapl.POWERCAP)
    device: str = ""
    """As torch names the run's device; decides what counts where the driver tells nothing."""


class Source(Protocol):
    """Something that is read."""

    def streams(self, interval_seconds: float) -> list[Stream]:
        """Return what is due at which rhythm."""

    def full(self) -> list[Reading]:
        """Read everything now."""


@dataclass
class _Due:
    stream: Stream
    at_ns: int
    spent_ns: deque[int] = field(default_factory=lambda: deque(maxlen=9))

    def share(self) -> float:
        """Return the part of the asked period that one reading takes."""
        # Median: a reading that another process interrupted says nothing about its cost.
        usual = statistics.median(self.spent_ns) if len(self.spent_ns) >= 3 else 0.0
        return usual / (self.stream.seconds * 1e9)


class Loop:
    """Reads sources into a run's folder: ``tick`` when it is time, ``full`` when asked."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock = time.monotonic_ns,
        sources: Callable[[Settings, Clock], Sequence[Source]] | None = None,
    ) -> None:
        """Open the sources, take the first full reading, and write it.

        Args:
            settings: what is asked.
            clock: of the trace; nanoseconds.
            sources: what to read instead of host, RAPL and GPUs.

        """
        self._settings, self._clock = settings, clock
        self._folder = Path(settings.folder)
        self._begin_ns = clock()
        self.trace = TraceWriter(self._folder / TRACE)
        self.refusals = notes.Refusals()
        self._slower = 1.0
        self._written_ns = 0
        self._late = False
        opened = (sources or _open)(settings, clock)
        self._sources = list(opened)
        self._facts = _facts(self._sources)
        self.full()
        now = clock()
        streams = [s for source in opened for s in source.streams(settings.interval_seconds)]
        self._due = [_Due(stream, now + round(stream.seconds * 1e9)) for stream in streams]
        self._grid_ns = now
        self._write_notes()

    def tick(self) -> int:
        """Read what is due; return the time at which something is due again."""
        for due in self._due:
            begin = self._clock()
            if due.at_ns > begin:
                continue
            self._keep(due.stream.read())
            now = self._clock()
            due.spent_ns.append(now - begin)
            self._next(due, now)
        self._slow_down()
        if self.refusals.changed and self._clock() - self._written_ns > 1e9:
            self._write_notes()
        return min((due.at_ns for due in self._due), default=self._clock() + 10**9)

    def full(self) -> None:
        """Read everything now, and hand it to the disk."""
        for source in self._sources:
            self._keep(source.full())
        self.trace.flush()

    def late(self) -> None:
        """Note that the run began before the first reading."""
        self._late = True
        self._write_notes()

    def end(self, why: str) -> None:
        """Take the last full reading, and close trace, notes and sources."""
        self.full()
        self.trace.close()
        self._write_notes({"t_ns": self._clock(), "why": why})
        for source in self._sources:
            if isinstance(source, Gpus | Host):
                source.close()

    def _keep(self, readings: list[Reading]) -> None:
        rows = []
        for reading in readings:
            value = reading.answer.value
            if isinstance(reading.answer, Answer) and isinstance(value, int | float):
                rows.append(Row(*reading[:4], value))
            else:
                self.refusals.add(reading)
        self.trace.write(rows, self._clock())

    def _next(self, due: _Due, now_ns: int) -> None:
        # On a grid: a late reading does not put off the following ones, nor are they made up for.
        every = round(due.stream.seconds * 1e9 * self._slower)
        due.at_ns = self._grid_ns + ((now_ns - self._grid_ns) // every + 1) * every

    def _slow_down(self) -> None:
        share = sum(due.share() for due in self._due)
        # In steps of a half, so that the grid does not shift with every reading.
        self._slower = max(1.0, -(-share / SHARE * 2 // 1) / 2)

    def _write_notes(self, ended: dict[str, Any] | None = None) -> None:
        self._written_ns = self._clock()
        self.refusals.changed = False
        problem = notes.write(
            self._folder,
            {
                **asdict(self._settings),
                "sampler_pid": os.getpid(),
                "late": self._late,
                "begin_ns": self._begin_ns,
                "written_ns": self._written_ns,
                "cpu_seconds": time.process_time(),  # what sampling itself has cost
                **self._facts,
                **_found_so_far(self._sources),
                "streams": {
                    d.stream.name: {
                        "asked_seconds": d.stream.seconds,
                        "seconds": d.stream.seconds * self._slower,
                        "cost_seconds": statistics.median(d.spent_ns or [0]) / 1e9,
                    }
                    for d in getattr(self, "_due", [])
                },
                "refusals": self.refusals.listed(),
                "trace": {
                    "opened": self.trace.opened,
                    "problem": self.trace.problem,
                    "lost_rows": self.trace.lost,
                },
                "ended": ended,
            },
        )
        if problem is not None:
            with contextlib.suppress(OSError):  # the log may be on the same full disk
                print(f"bench.sampler: {problem}", file=sys.stderr, flush=True)


def _open(settings: Settings, clock: Clock) -> list[Source]:
    sources: list[Source] = [
        Host(settings.pid, clock),
        Rapl(clock, Path(settings.powercap)),
    ]
    if settings.nvml:
        sources.append(Gpus(settings.visible, settings.pid, clock))
    return sources


def _facts(sources: Sequence[Source]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for source in sources:
        if isinstance(source, Gpus):
            facts["unavailable"] = notes.unavailable(source.devices.unavailable)
            facts["devices"] = source.facts()
        elif isinstance(source, Rapl):
            facts["rapl"] = notes.unavailable(source.unavailable)
        elif isinstance(source, Host):
            facts["cpus"] = len(source.cpus)
    return facts


def _found_so_far(sources: Sequence[Source]) -> dict[str, Any]:
    for source in sources:
        if isinstance(source, Gpus):
            return {
                "doubts": [asdict(doubt) for doubt in source.doubts],
                "errors": source.errors(),
            }
    return {}

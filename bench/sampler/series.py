"""What one series of readings says about each phase, in one pass over it.

A phase may be thousands of short windows (a step each) and none of them need hold a reading, so
counters and rates are joined by straight lines and cut at the borders of the phases.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from bench.sampler.windows import Stretch


class Borders:
    """Finds the phases that are open at a time, or between two."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        """Take them in order, as :func:`bench.sampler.windows.stretches` gives them."""
        self.stretches = stretches
        self._begins = [stretch.begin_ns for stretch in stretches]

    def at(self, t_ns: int) -> frozenset[str]:
        """Return the phases open at ``t_ns``, borders included."""
        i = bisect.bisect_right(self._begins, t_ns) - 1
        if i < 0 or self.stretches[i].end_ns < t_ns:
            return frozenset()
        return self.stretches[i].phases

    def between(self, begin_ns: int, end_ns: int) -> Iterator[tuple[int, int, frozenset[str]]]:
        """Cut the time from ``begin_ns`` to ``end_ns``: pieces, and the phases open in each."""
        i = max(0, bisect.bisect_right(self._begins, begin_ns) - 1)
        while i < len(self.stretches) and self.stretches[i].begin_ns < end_ns:
            stretch = self.stretches[i]
            begin, end = max(begin_ns, stretch.begin_ns), min(end_ns, stretch.end_ns)
            if end > begin:
                yield begin, end, stretch.phases
            i += 1


@dataclass
class Total:
    """What came together in a phase."""

    amount: float = 0.0
    seconds: float = 0.0
    """Of the phase, between readings close enough to each other to say something."""


class Spread:
    """Sums a series over the phases: a counter's differences, or the area under a rate.

    Args:
        borders: of the phases.
        phases: the ones wanted.
        longest_seconds: between two readings. Over a longer pause a rate says nothing; a counter
            says what passed in phases that were open all through it.
        is_counter: whether the values only rise, and the amount is the rise.

    """

    def __init__(
        self,
        borders: Borders,
        phases: Collection[str],
        longest_seconds: float,
        is_counter: bool,
    ) -> None:
        """Begin with nothing."""
        self._borders = borders
        self._longest_ns = longest_seconds * 1e9
        self._is_counter = is_counter
        self._before: tuple[int, float] | None = None
        self.readings = 0
        self.totals = {phase: Total() for phase in phases}
        self.fell: dict[str, tuple[float, float]] = {}
        """Phases in which a counter fell, and from what to what."""

    def add(self, t_ns: int, value: float) -> None:
        """Take the next reading."""
        self.readings += 1
        before, self._before = self._before, (t_ns, value)
        if before is None or t_ns <= before[0]:
            return
        if self._is_counter and value < before[1]:
            for _, _, phases in self._borders.between(before[0], t_ns):
                self.fell |= {p: (before[1], value) for p in phases if p in self.totals}
        elif t_ns - before[0] <= self._longest_ns:
            self._short(before, (t_ns, value))
        elif self._is_counter:
            self._long(before, (t_ns, value))

    def _short(self, before: tuple[int, float], after: tuple[int, float]) -> None:
        (t0, v0), (t1, v1) = before, after
        slope = (v1 - v0) / (t1 - t0)
        for begin, end, phases in self._borders.between(t0, t1):
            seconds = (end - begin) / 1e9
            if self._is_counter:
                amount = slope * (end - begin)
            else:
                amount = (v0 + slope * ((begin + end) / 2 - t0)) * seconds
            self._put(phases, amount, seconds)

    def _long(self, before: tuple[int, float], after: tuple[int, float]) -> None:
        open_all: frozenset[str] | None = None
        covered = 0
        for begin, end, phases in self._borders.between(before[0], after[0]):
            covered += end - begin
            open_all = phases if open_all is None else open_all & phases
        if open_all and covered == after[0] - before[0]:
            self._put(open_all, after[1] - before[1], covered / 1e9)

    def _put(self, phases: frozenset[str], amount: float, seconds: float) -> None:
        for phase in phases:
            total = self.totals.get(phase)
            if total is not None:
                total.amount += amount
                total.seconds += seconds


@dataclass
class Peaks:
    """The largest reading in each phase."""

    borders: Borders
    by_phase: dict[str, float] = field(default_factory=dict)

    def add(self, t_ns: int, value: float) -> None:
        """Take the next reading."""
        for phase in self.borders.at(t_ns):
            if value > self.by_phase.get(phase, float("-inf")):
                self.by_phase[phase] = value


class Gaps:
    """Seconds between readings while one window was open."""

    def __init__(self, begin_ns: int, end_ns: int) -> None:
        """Look at readings from ``begin_ns`` to ``end_ns``."""
        self._begin, self._end = begin_ns, end_ns
        self._last: int | None = None
        self._gaps = array("q")

    def add(self, t_ns: int, value: float) -> None:
        """Take the next reading, of which the time counts."""
        if self._last is not None and self._begin <= t_ns and self._last <= self._end:
            self._gaps.append(t_ns - self._last)
        self._last = t_ns

    def quantiles(self) -> tuple[float, float, float] | None:
        """Return median, 99th per cent and largest gap in s, or None.

        A window whose end came long after the last reading has that as its largest gap.
        """
        gaps = sorted(self._gaps)
        if not gaps or self._last is None:
            return None
        p50, p99 = (gaps[min(len(gaps) - 1, int(q * len(gaps)))] for q in (0.5, 0.99))
        largest = max(gaps[-1], self._end - self._last)
        return p50 / 1e9, p99 / 1e9, largest / 1e9


class Ends:
    """The readings at the two ends of a window, and the first of all."""

    def __init__(self, begin_ns: int, end_ns: int) -> None:
        """Look for the last reading up to ``begin_ns`` and the first from ``end_ns`` on."""
        self._begin, self._end = begin_ns, end_ns
        self.first: float | None = None
        self.before: float | None = None
        """The last up to the beginning; the first of all where none came so early."""
        self.after: float | None = None
        """The first from the end on; the last of all where none came so late."""
        self._closed = False

    def add(self, t_ns: int, value: float) -> None:
        """Take the next reading."""
        if self.first is None:
            self.first = value
        if self.before is None or t_ns <= self._begin:
            self.before = value
        if not self._closed:
            self.after = value
            self._closed = t_ns >= self._end

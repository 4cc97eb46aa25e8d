"""Stretches of time in which a phase was open, and what follows from their nesting."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

RUN = "run"


@dataclass(frozen=True)
class Window:
    """One stretch in which a phase was open.

    Times are ``time.monotonic_ns()``, one clock for all processes of a machine; ``depth`` is 0 for
    ``run``, and a nested window lies inside the one that it was opened in.
    """

    name: str
    begin_ns: int
    end_ns: int
    depth: int


@dataclass(frozen=True)
class Stretch:
    """Time between two borders next to each other: the same phases are open all through it."""

    begin_ns: int
    end_ns: int
    phases: frozenset[str]


def stretches(windows: Iterable[Window]) -> list[Stretch]:
    """Cut time at every border, in order: the stretches in which some phase is open.

    A phase that is open twice at once (nested in itself) counts once. O(n log n).
    """
    borders: dict[int, list[tuple[int, str]]] = {}
    for window in windows:
        if window.end_ns > window.begin_ns:
            borders.setdefault(window.begin_ns, []).append((1, window.name))
            borders.setdefault(window.end_ns, []).append((-1, window.name))
    open_now: dict[str, int] = {}
    found = []
    for begin, end in itertools.pairwise(sorted(borders)):
        for change, name in borders[begin]:
            open_now[name] = open_now.get(name, 0) + change
        phases = frozenset(name for name, count in open_now.items() if count)
        if phases:
            found.append(Stretch(begin, end, phases))
    return found


def seconds_of(found: Sequence[Stretch]) -> dict[str, float]:
    """Return how long each phase was open in all."""
    total: dict[str, int] = {}
    for stretch in found:
        for name in stretch.phases:
            total[name] = total.get(name, 0) + stretch.end_ns - stretch.begin_ns
    return {name: ns / 1e9 for name, ns in total.items()}

"""Whether the machine is quiet: who else uses its CPU, and how far equal work differs in time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence

import psutil
import torch

from bench import threads
from bench.checkup.finding import Finding, State

BUSY_SHARE = 0.10
"""Of the CPUs, taken by others: a time run is then flagged ``host_busy``."""
QUIET, USABLE = 0.02, 0.10
"""Relative spread of equal work: below the first single timings can be read."""

_WATCH_SECONDS = 0.5
_NOISE_SECONDS = 1.0
_SIDE = 384


def findings() -> Iterator[Finding]:
    """Look for about two seconds."""
    yield idle(others_busy_cpus(), os.cpu_count() or 1, _load_average())
    available = psutil.virtual_memory().available
    yield Finding(what="memory free", state="ok", detail=f"{available / 2**30:.1f} GiB")
    yield noise(equal_work())


def idle(busy: float, cpus: int, load: float | None) -> Finding:
    """Judge how many CPUs others keep busy."""
    text = f"others keep {busy:.1f} of {cpus} CPUs busy"
    if load is not None:
        text += f", load average {load:.1f}"
    state: State = "ok"
    if busy > BUSY_SHARE * cpus:
        state = "note"
        text += ": wall times are shared with them, time runs get the flag host_busy"
    return Finding(what="CPU idle", state=state, detail=text)


def others_busy_cpus() -> float:
    """Return how many CPUs all processes but this one keep busy, over half a second."""
    own = psutil.Process()
    begin, mine, start = _busy_seconds(), sum(own.cpu_times()[:2]), time.perf_counter()
    time.sleep(_WATCH_SECONDS)
    took = time.perf_counter() - start
    busy = _busy_seconds() - begin - (sum(own.cpu_times()[:2]) - mine)
    return max(0.0, float(busy) / took)


def equal_work() -> list[float]:
    """Return the seconds of one matrix product, again and again for a second.

    With as many threads as a run takes: one core among many is quieter than all of them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads.count(None))
    try:
        matrix = torch.ones(_SIDE, _SIDE)
        torch.mm(matrix, matrix)  # the pool of threads is started
        seconds = []
        end = time.perf_counter() + _NOISE_SECONDS
        while (start := time.perf_counter()) < end:
            torch.mm(matrix, matrix)
            seconds.append(time.perf_counter() - start)
        return seconds
    finally:
        torch.set_num_threads(before)


def noise(seconds: Sequence[float]) -> Finding:
    """Judge the spread of equal work: half of all samples lie within it, relative to the median.

    >>> noise([1.0, 1.0, 1.0, 1.0]).state
    'ok'

    """
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4)
    spread, worst = (high - low) / median, max(seconds) / median
    share = f"{100 * spread:.1f} %" if spread < 1 else f"{spread:.0f} times"
    text = (
        f"{share}: the middle half of {len(seconds)} equal products, over their median of "
        f"{1e3 * median:.2f} ms; the slowest took {worst:.1f} times that. "
    )
    if spread <= QUIET:
        return Finding(
            what="noise score", state="ok", detail=text + "Times of single steps can be compared"
        )
    if spread <= USABLE:
        text += f"Two medians that differ by less than {200 * spread:.0f} % may be equal"
    else:
        text += "Wall times say little now: compare CPU seconds, or what is taken in turns"
    return Finding(what="noise score", state="note", detail=text)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    waiting = times.idle + getattr(times, "iowait", 0.0)
    # A guest's time is in `user` already.
    twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - waiting - twice)


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None

"""The sampler's helper: does it see known bytes and known work, and how often does it look?"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.devices import rapl
from bench.devices.answer import Unavailable
from bench.sampler import Sampler, notes, trace
from bench.selfcheck.cpu import late_bytes
from bench.selfcheck.verdict import Verdict, broken, judge, missing, told

INTERVAL_SECONDS = 0.05
HELD_BYTES = 128 << 20
_STRETCH_SECONDS = 0.6
_METER = "sampler"


def verdicts() -> Iterator[Verdict]:
    """Watch this process hold 128 MiB and work; about three seconds."""
    with tempfile.TemporaryDirectory(prefix="zometer-selfcheck-") as name:
        folder = Path(name)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        sampler = Sampler(
            folder, pid=os.getpid(), visible=visible, interval_seconds=INTERVAL_SECONDS
        )
        sampler.start()
        borders = _known_work()
        sampler.close()
        rows = list(trace.read(folder / trace.TRACE))
        failed = notes.read(folder).get("failed")
    if failed or not rows:
        yield broken(_METER, "128 MiB held", str(failed or "it left no trace"))
        return
    yield from judged(rows, borders)


def packages() -> Iterator[Verdict]:
    """Work for a second, and see whether the energy counters of the CPU rise."""
    meter, case = "CPU energy (RAPL)", "a second of work"
    found = rapl.packages()
    if isinstance(found, Unavailable):
        yield missing(meter, case, found.reason)
        return
    before = [package.energy_joules() for package in found]
    _burn(1.0)
    for package, first in zip(found, before, strict=True):
        last, name = package.energy_joules(), f"{meter}, {package.name}"
        if isinstance(first, Unavailable):
            yield missing(name, case, first.reason)
        elif isinstance(last, Unavailable):
            yield missing(name, case, last.reason)
        elif last.value <= first.value:
            yield broken(name, case, "the counter did not rise")
        else:
            yield told(name, case, last.value - first.value, "J", "nothing to compare it with")


def _known_work() -> list[int]:
    """Idle, hold bytes, idle, and work; return the borders in between, in monotonic ns."""
    borders = [time.monotonic_ns()]
    time.sleep(_STRETCH_SECONDS)
    borders.append(time.monotonic_ns())
    held = bytearray(b"\1") * HELD_BYTES
    time.sleep(_STRETCH_SECONDS)
    del held
    borders.append(time.monotonic_ns())
    _burn(_STRETCH_SECONDS)
    borders.append(time.monotonic_ns())
    time.sleep(3 * INTERVAL_SECONDS)  # the last of it is read
    return borders


def judged(rows: Sequence[trace.Row], borders: Sequence[int]) -> Iterator[Verdict]:
    """Judge a trace of :func:`_known_work`."""
    rss = [r for r in rows if r.metric == "rss_bytes" and r.source == "host"]
    cpu = [r for r in rows if r.metric == "cpu_seconds" and r.source == "host"]
    idle = [r.value for r in rss if borders[0] <= r.t_ns < borders[1]]
    held = [r.value for r in rss if borders[1] <= r.t_ns < borders[2]]
    case = f"{HELD_BYTES >> 20} MiB held for {_STRETCH_SECONDS:g} s"
    if not idle or not held:
        yield broken(_METER, case, f"{len(idle)} readings before it and {len(held)} within it")
        return
    tolerance = 0.01 * HELD_BYTES + late_bytes()
    yield judge(f"{_METER}, resident set", case, HELD_BYTES, max(held) - max(idle), tolerance)
    before = max((r.value for r in cpu if r.t_ns <= borders[2]), default=0.0)
    after = max((r.value for r in cpu), default=0.0)
    burnt = f"{_STRETCH_SECONDS:g} s of work"
    # /proc counts in ticks of 10 ms; at each end a reading may be an interval old.
    slack = 0.02 + INTERVAL_SECONDS + 0.05 * _STRETCH_SECONDS
    yield judge(f"{_METER}, CPU seconds", burnt, _STRETCH_SECONDS, after - before, slack, "s")
    gaps = [(b.t_ns - a.t_ns) / 1e9 for a, b in itertools.pairwise(rss)]
    median = statistics.median(gaps)
    asked = f"{1e3 * INTERVAL_SECONDS:.0f} ms between readings asked"
    yield judge(f"{_METER}, interval", asked, INTERVAL_SECONDS, median, INTERVAL_SECONDS / 2, "s")
    yield told(f"{_METER}, interval", "longest of all", max(gaps), "s")


def _burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

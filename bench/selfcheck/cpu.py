"""The meters of the CPU against what is known, in processes started exactly as runs are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from bench import executor, threads
from bench.records import Measure, RunSpec
from bench.selfcheck import child, known
from bench.selfcheck.verdict import Verdict, broken, furthest, judge, missing

METERS = {
    "host_allocated_peak_bytes": "heap counter",
    "host_peak_bytes": "peak resident set (VmHWM)",
}
TOLERANCE = {
    "host_allocated_peak_bytes": (0.005, 0.03),
    "host_peak_bytes": (0.01, 0.05),
}
"""As a share of what is known: of tensors of 8 MiB and more, and of many small ones."""

_PAGE = 4096
_KINDS = 2  # of pages: of files, and anonymous

_SECONDS = 300.0


def verdicts() -> Iterator[Verdict]:
    """Check memory, then clocks; about ten seconds on two cores."""
    yield from memory(_child("memory"))
    yield from clocks(_child("time"))


def memory(found: dict[str, Any] | str) -> Iterator[Verdict]:
    """Judge what the child saw; a text is why it saw nothing."""
    if isinstance(found, str):
        yield broken("memory runs", "known allocations", found)
        return
    several = known.cases()
    for metric, meter in METERS.items():
        peaks = found["peaks"].get(metric)
        if peaks is None:
            reason = found["unavailable"].get(metric, "no tracker reads it here")
            yield missing(meter, "known allocations", reason)
            continue
        for case in several:
            expected = case.known_bytes
            share = TOLERANCE[metric][case.many_small] * expected
            tolerance = max(share, late_bytes() if metric == "host_peak_bytes" else 0)
            yield furthest(meter, case.name, expected, peaks[case.name], tolerance)


def clocks(found: dict[str, Any] | str) -> Iterator[Verdict]:
    """Judge what the child's clocks said."""
    if isinstance(found, str):
        yield broken("time runs", "known sleeps", found)
        return
    nap = child.SLEEP_SECONDS
    # A sleep ends late where the machine is busy, never early: the shortest tells of the clock.
    late = f"shortest of {child.SLEEPS} sleeps of {nap:g} s"
    yield judge("phase clock", late, nap, min(found["sleeps"]), 0.05 * nap, "s")
    wall, seen = found["wall"], found["monotonic"]
    yield judge("phase clock", "against the wall clock", wall, seen, 0.005 + 0.01 * wall, "s")
    yield judge("CPU seconds", f"asleep for {nap:g} s", 0.0, found["asleep_cpu"], 0.02, "s")
    burnt, case = 2 * child.BURN_SECONDS, f"2 threads of {child.BURN_SECONDS:g} s each"
    yield judge("CPU seconds", case, burnt, found["burnt_cpu"], 0.05 * burnt, "s")
    # /proc counts in ticks of 10 ms.
    proc = found["burnt_cpu_proc"]
    yield judge("CPU seconds (/proc)", case, burnt, proc, 0.02 + 0.05 * burnt, "s")


def late_bytes() -> int:
    """Return how much Linux' own count of resident pages may be behind.

    Each CPU adds its pages to the sum in batches of 32, or of two a CPU where there are more than
    16 of them (``percpu_counter_batch``); VmHWM is the maximum of that sum.
    """
    cpus = os.cpu_count() or 1
    used = min(cpus, max(2, threads.count(None)))  # the thread that loads, and those that compute
    return _KINDS * max(32, 2 * cpus) * used * _PAGE


def _child(measure: Measure) -> dict[str, Any] | str:
    """Return what the child prints, or why it printed nothing."""
    spec = RunSpec(
        method="zero_shot", model="opt-tiny", task="random_tokens", steps=0, measure=measure
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.selfcheck.child", measure],
            env=executor.environment_of(spec),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"the process was not done after {_SECONDS:g} s"
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        return f"the process ended with {done.returncode}: {lines[-1] if lines else 'no reason'}"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result

"""What the checks of the CPU run in processes of their own: ``python -m bench.selfcheck.child``.

``memory`` in a process that is started as memory runs are, ``time`` in one as time runs are. The
last line of output is JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import psutil
import torch

from bench import threads, trackers
from bench.monitor import Monitor
from bench.selfcheck import known
from bench.stepping.clock import timed

REPEATS = 3
SLEEP_SECONDS = 0.1
SLEEPS = 5
BURN_SECONDS = 0.2
BASELINES = {
    "host_peak_bytes": "host_baseline_bytes",
    "host_allocated_peak_bytes": None,  # is given beyond its baseline
}
"""Metrics that are checked, and what has to be taken off them."""


def memory() -> dict[str, Any]:
    """Return, by metric and case, the peaks that a memory run would record, and why others not."""
    torch.set_num_threads(threads.count(None))
    working, reasons = trackers.available("cpu")
    found: dict[str, dict[str, list[float]]] = {}
    for case in known.cases():
        for number in range(REPEATS + 1):
            seen = _peaks(working, case)
            if number:  # a warm process: what is allocated once and for all was
                for metric, value in seen.items():
                    found.setdefault(metric, {}).setdefault(case.name, []).append(value)
    absent = {m: why for name, why in reasons.items() for m in trackers.modules()[name].METRICS}
    return {"peaks": found, "unavailable": {m: w for m, w in absent.items() if m in BASELINES}}


def _peaks(working: dict[str, trackers.Tracker], case: known.Case) -> dict[str, float]:
    monitor = Monitor("memory", working, {}, trackers.definitions())
    with monitor.phase("known"):
        kept = case.work()
    del kept
    values = {(m.metric, m.phase): m.value or 0 for m in monitor.measurements()}
    return {
        metric: values[metric, "known"] - (values[baseline, "run"] if baseline else 0)
        for metric, baseline in BASELINES.items()
        if (metric, "known") in values
    }


def clocks() -> dict[str, Any]:
    """Return what the clocks said of known sleeps, and of known time on the CPU."""
    monitor = Monitor("time", {}, {}, trackers.definitions())
    with monitor.phase("run"):
        for number in range(SLEEPS):
            with monitor.phase(f"sleep{number}"):
                time.sleep(SLEEP_SECONDS)
    seconds = {m.phase: m.value for m in monitor.measurements() if m.metric == "phase_seconds"}
    wall, monotonic = time.time(), time.monotonic()
    asleep = timed(lambda: time.sleep(SLEEP_SECONDS))
    process = psutil.Process()
    before = process.cpu_times()
    burnt = timed(lambda: _burn(2))
    after = process.cpu_times()
    return {
        "sleeps": [seconds[f"sleep{number}"] for number in range(SLEEPS)],
        "wall": time.time() - wall,
        "monotonic": time.monotonic() - monotonic,
        "asleep_cpu": asleep.cpu_seconds,
        "burnt_cpu": burnt.cpu_seconds,
        "burnt_cpu_proc": after.user + after.system - before.user - before.system,
    }


def _burn(count: int) -> None:
    """Take ``BURN_SECONDS`` of CPU time in each of ``count`` threads, by their own clocks."""

    def work() -> None:
        end = time.thread_time() + BURN_SECONDS
        while time.thread_time() < end:
            pass

    several = [threading.Thread(target=work) for _ in range(count)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()


if __name__ == "__main__":
    print(json.dumps({"memory": memory, "time": clocks}[sys.argv[1]]()))

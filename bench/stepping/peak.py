"""The most bytes that tensors take while something runs: counted, not sampled.

On the CPU every allocation and release of torch's allocator is an event of its profiler; the peak
is the largest running sum. What numba or the interpreter hold is outside of it (the noise kernel:
26 KiB a thread). On CUDA the caching allocator keeps the peak itself, rounded up to 512 bytes a
tensor.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from operator import itemgetter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bench.records.step_speed import StepPeak

_FORWARD = "zometer.forward"
_COUNTED = "zometer.counted"


def forward_pass(device: str) -> AbstractContextManager[Any]:
    """Mark a forward pass, so that bytes inside and outside of it can be told apart."""
    return record_function(_FORWARD) if torch.device(device).type == "cpu" else nullcontext()


def peak_bytes(work: Callable[[], object], device: str = "cpu") -> StepPeak:
    """Run ``work`` twice and return the most bytes alive in the second, beyond those before it.

    Twice, since the profiler tells no release of what was allocated before it began: without the
    first run, weights that are replaced by new tensors would count as weights and new tensors. On
    CUDA, ``outside_bytes`` is the whole peak: forward passes are not told apart there.
    """
    if torch.device(device).type == "cuda":
        work()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        return StepPeak(peak_bytes=peak, outside_bytes=peak)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
        with record_function(_COUNTED):
            work()
    events: Any = seen.profiler.kineto_results.events()
    return _peak(events)


def _peak(events: Iterable[Any]) -> StepPeak:
    changes: list[tuple[int, int]] = []
    spans: dict[str, list[tuple[int, int]]] = {_FORWARD: [], _COUNTED: []}
    for event in events:
        if event.name() == "[memory]":
            changes.append((event.start_ns(), event.nbytes()))
        elif event.name() in spans:
            spans[event.name()].append((event.start_ns(), event.start_ns() + event.duration_ns()))
    ((begin, end),) = spans[_COUNTED]
    inside = sorted(spans[_FORWARD])
    alive = most = outside = 0
    for at, change in sorted(changes, key=itemgetter(0)):  # stable: ties stay as they came
        if begin <= at <= end:
            alive += change
            most = max(most, alive)
            if not _within(at, inside):
                outside = max(outside, alive)
    return StepPeak(peak_bytes=most, outside_bytes=outside)


def _within(at: int, spans: list[tuple[int, int]]) -> bool:
    last = bisect.bisect(spans, at, key=itemgetter(0)) - 1
    return last >= 0 and at <= spans[last][1]

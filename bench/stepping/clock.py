"""How long a piece of work takes, in wall time and in time of the process on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Took:
    """What a piece of work took."""

    seconds: float
    """Wall time; on CUDA the time between two events on the stream."""
    cpu_seconds: float
    """Of all threads of the process."""


def timed(work: Callable[[], object], device: str = "cpu") -> Took:
    """Run ``work`` and return what it took; on CUDA until the device has finished it."""
    if torch.device(device).type == "cuda":
        return _on_cuda(work, device)
    cpu, start = time.process_time(), time.perf_counter()
    work()
    end, cpu_end = time.perf_counter(), time.process_time()
    return Took(end - start, cpu_end - cpu)


def _on_cuda(work: Callable[[], object], device: str) -> Took:
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # why: torch types it not
        last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # why: as above
        cpu = time.process_time()
        first.record()
        work()
        last.record()
        torch.cuda.synchronize()
        return Took(first.elapsed_time(last) / 1e3, time.process_time() - cpu)

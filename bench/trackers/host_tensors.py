"""Peak of the live bytes of the process' heap: exact, counted at every allocation.

The bytes of tensors on the CPU, to the byte: torch takes each tensor from ``posix_memalign`` and
numpy each array from ``malloc``, and a preloaded counter (``bench.preload``) adds and subtracts
them all, with what Python and the libraries keep on the heap beside them. Free of what a resident
set suffers from: heap that the allocator keeps after a release, pages not touched yet, fragments.

What it does not see, since it is no heap: weights in a mapped file (safetensors, until they are
copied), shared memory, stacks, compiled code, pinned memory of CUDA, and Python objects of up to
512 bytes, which lie in arenas that Python maps itself. A ``realloc`` that copies counts as its
growth alone. Under an allocator that the user preloads, C++ objects taken from that allocator's
own ``new`` are not seen; tensors are.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from bench.preload import heap_counter
from bench.preload.heap_counter import NOT_COUNTED
from bench.records import Metric
from bench.trackers import Reading, Tracker, Unavailable

TITLE = "Peak of the live bytes on the heap: tensors of the CPU, exact"
METRICS = {
    "host_allocated_peak_bytes": Metric(
        "B",
        "Largest sum of live heap blocks (malloc and its kin) within the phase, minus "
        "host_allocated_baseline_bytes: what tensors of the CPU and other buffers took since. "
        "Blocks of 32 KiB or more count as the bytes asked for, smaller ones as malloc rounds "
        "them. Without mapped files, stacks, and Python objects of up to 512 bytes. "
        "Measured in memory runs on the CPU.",
    ),
    "host_allocated_baseline_bytes": Metric(
        "B",
        "Sum of live heap blocks after the libraries were imported and before the model was "
        "loaded.",
    ),
}

MODES = ("memory",)
_PROBE_BYTES = 8 << 20


class HostTensors:
    """The tracker."""

    def __init__(self, counter: ctypes.CDLL | None = None) -> None:
        """Find the counter in this process, and see whether tensors move it.

        Args:
            counter: a library that has it; this process where absent.

        Raises:
            Unavailable: the process was not started with it, or torch's allocator evades it.

        """
        library = counter or ctypes.CDLL(None)
        try:
            self._live, self._peak = library.zometer_heap_live, library.zometer_heap_peak
            self._reset, named = library.zometer_heap_reset, library.zometer_heap_allocator
        except AttributeError:
            missing = "this process was not started with the counter; memory runs on the CPU are"
            raise Unavailable(os.environ.get(NOT_COUNTED, missing)) from None
        self._live.restype = self._peak.restype = ctypes.c_ssize_t
        self._reset.restype, named.restype = None, ctypes.c_char_p
        self._source = f"counted calls of malloc in {Path(os.fsdecode(named())).name}"
        self._check()
        self._base: int = self._live()

    def _check(self) -> None:
        # Builds of torch exist whose tensors come from an allocator of its own (mimalloc).
        before = self._live()
        kept = torch.empty(_PROBE_BYTES, dtype=torch.uint8)
        seen = self._live() - before
        if not kept.nbytes <= seen <= 1.01 * kept.nbytes:
            raise Unavailable(
                f"a tensor of {kept.nbytes} bytes moved the counter by {seen}: this build of "
                "torch takes memory from an allocator that can't be counted"
            )

    def settle(self) -> None:
        """Nothing: what is alive after the collection of garbage is what counts."""

    def reset(self) -> None:
        """Begin a window at what is live now."""
        self._reset()

    def read(self) -> list[Reading]:
        """Return the largest sum since the reset, beyond the baseline."""
        value = self._peak() - self._base
        return [Reading("host_allocated_peak_bytes", value, "exact", self._source)]

    def baseline(self) -> list[Reading]:
        """Return what is live now; peaks count from here."""
        self._base = self._live()
        return [Reading("host_allocated_baseline_bytes", self._base, "exact", self._source)]

    def totals(self) -> list[Reading]:
        """Nothing."""
        return []


def elsewhere(device: str) -> str:
    """Say which other processes it can measure in; this one may not have been started for it.

    Raises:
        Unavailable: none.

    """
    if device != "cpu":
        raise Unavailable(f"memory runs on {device} are not started with the counter")
    heap_counter.library()
    return "in memory runs on the CPU, which are started with its counter"


def tracker(device: str) -> Tracker:
    """Return the tracker; it counts the host's heap whatever the device."""
    return HostTensors()

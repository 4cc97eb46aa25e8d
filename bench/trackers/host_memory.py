"""Peak resident set of this process, exact and resettable, from Linux's ``/proc``.

``VmHWM`` is the kernel's own high-water mark, so no spike is missed. Writing 5 to
``/proc/self/clear_refs`` resets it (unprivileged). Before a window opens the heap is trimmed:
otherwise glibc serves an allocation from memory it kept, and a peak of 64 MiB reads as 0.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from bench.records import metrics as known
from bench.trackers import Reading, Tracker, Unavailable

TITLE = "Peak resident set of the process (VmHWM)"
METRICS = {name: known.METRICS[name] for name in ("host_peak_bytes", "host_baseline_bytes")}

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def status_bytes(field: str) -> int:
    """Return a field of ``/proc/self/status``, such as VmHWM, VmRSS or VmData, in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


class HostMemory:
    """The tracker."""

    def __init__(self) -> None:
        """Find out whether peaks can be reset here.

        Raises:
            Unavailable: not Linux, or the kernel does not allow the reset.

        """
        if sys.platform != "linux":
            raise Unavailable(f"VmHWM is a Linux counter; this is {sys.platform}")
        try:
            _CLEAR.write_text("5")
            status_bytes("VmHWM")
        except (OSError, KeyError) as error:
            raise Unavailable(f"the kernel does not let a process reset VmHWM: {error}") from error
        libc = ctypes.CDLL(None)
        self._trim = getattr(libc, "malloc_trim", None)  # absent in musl

    def settle(self) -> None:
        """Nothing: the heap is trimmed whenever a window opens."""

    def reset(self) -> None:
        """Give freed heap back, then set the mark to what is resident now."""
        if self._trim is not None:
            self._trim(0)
        _CLEAR.write_text("5")

    def read(self) -> list[Reading]:
        """Return the largest resident set since the reset."""
        source = "VmHWM, reset by clear_refs" + (", malloc_trim" if self._trim is not None else "")
        return [Reading("host_peak_bytes", status_bytes("VmHWM"), "exact", source)]

    def baseline(self) -> list[Reading]:
        """Return the resident set now."""
        return [Reading("host_baseline_bytes", status_bytes("VmRSS"), "exact", "VmRSS")]

    def totals(self) -> list[Reading]:
        """Nothing."""
        return []


def tracker(device: str) -> Tracker:
    """Return the tracker; it measures the host whatever the device."""
    return HostMemory()

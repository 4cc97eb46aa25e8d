"""Peaks of torch's caching allocator on one CUDA (or ROCm) device: exact, every transient seen.

Three of the four figures that go by the name "GPU memory": requested, allocated, reserved. None
holds the CUDA context or what libraries take outside torch.
"""

from __future__ import annotations

import torch

from bench.records import metrics as known
from bench.trackers import Reading, Tracker, Unavailable

TITLE = "Peaks of torch's caching allocator (CUDA)"
_STATISTICS = {
    "device_allocated_peak_bytes": "allocated_bytes.all.peak",
    "device_reserved_peak_bytes": "reserved_bytes.all.peak",
    "device_requested_peak_bytes": "requested_bytes.all.peak",
}
METRICS = {name: known.METRICS[name] for name in _STATISTICS}


class TorchAllocator:
    """The tracker of one device."""

    def __init__(self, device: str) -> None:
        """Watch ``device``.

        Raises:
            Unavailable: the device is the CPU, or torch has no such device: without CUDA torch
                answers 0 to the same questions, which would be a lie.

        """
        if not device.startswith("cuda"):
            raise Unavailable("torch's allocator keeps no peaks for the CPU")
        if not torch.cuda.is_available():
            raise Unavailable("torch sees no CUDA device")
        self._device = torch.device(device)

    def settle(self) -> None:
        """Hand cached blocks back, so that the next phase does not inherit this one's cache."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()

    def reset(self) -> None:
        """Begin a window at what is allocated now."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> list[Reading]:
        """Return the three peaks since the reset."""
        torch.cuda.synchronize(self._device)
        statistics = torch.cuda.memory_stats(self._device)
        return [
            Reading(metric, statistics[name], "exact", f"torch.cuda.memory_stats {name}")
            for metric, name in _STATISTICS.items()
        ]

    def baseline(self) -> list[Reading]:
        """Nothing: a device's peaks begin at zero."""
        return []


def tracker(device: str) -> Tracker:
    """Return the tracker of ``device``."""
    return TorchAllocator(device)

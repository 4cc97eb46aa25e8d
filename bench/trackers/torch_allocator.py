"""Peaks of torch's caching allocator on one accelerator: exact, every transient seen.

Three of the four figures that go by the name "GPU memory": requested, allocated, reserved. None
holds the CUDA context or what libraries take outside torch. One road for CUDA, ROCm and XPU:
``torch.accelerator``, or the vendor's module where a torch has it not there. MPS keeps no peaks:
what it holds at the borders of phases is a sample, and said to be one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from bench.records import metrics as known
from bench.trackers import Reading, Tracker, Unavailable

TITLE = "Peaks of torch's caching allocator (CUDA, ROCm, XPU; samples on MPS)"
_PEAKS = {
    "device_allocated_peak_bytes": "allocated_bytes.all.peak",
    "device_reserved_peak_bytes": "reserved_bytes.all.peak",
    "device_requested_peak_bytes": "requested_bytes.all.peak",
}
_TOTALS = {"device_alloc_retries": "num_alloc_retries", "device_ooms": "num_ooms"}
_NOW = {
    "device_allocated_peak_bytes": "current_allocated_memory",
    "device_reserved_peak_bytes": "driver_allocated_memory",
}
METRICS = {name: known.METRICS[name] for name in (*_PEAKS, *_TOTALS)}


class Provider(Protocol):
    """What is asked of torch about one device."""

    name: str

    def memory_stats(self) -> Mapping[str, int]:
        """Return the allocator's statistics; empty before its first allocation."""
        ...

    def reset_peak_memory_stats(self) -> None:
        """Set peaks to what is held now."""
        ...

    def synchronize(self) -> None:
        """Wait for the device."""
        ...

    def empty_cache(self) -> None:
        """Hand what is cached and free back to the device."""
        ...


class Torch:
    """torch's own answers about one device."""

    def __init__(self, device: torch.device) -> None:
        """Choose the module that has them.

        Raises:
            Unavailable: torch sees no such device. It would answer 0 to the same questions.

        """
        vendor: Any = getattr(torch, device.type, None)
        if vendor is None or not vendor.is_available():
            raise Unavailable(f"torch sees no {device.type.upper()} device")
        self._device, self._vendor = device, vendor
        accelerator = getattr(torch, "accelerator", None)
        has = hasattr(accelerator, "memory_stats")
        self._module: Any = accelerator if has else vendor
        self.name = f"torch.{'accelerator' if has else device.type}"

    def memory_stats(self) -> Mapping[str, int]:
        """Return the allocator's statistics."""
        found = dict(self._module.memory_stats(self._device))
        if found and not set(_PEAKS.values()) <= found.keys():
            return {**self._vendor.memory_stats(self._device), **found}
        return found

    def reset_peak_memory_stats(self) -> None:
        """Set peaks to what is held now."""
        self._module.reset_peak_memory_stats(self._device)

    def synchronize(self) -> None:
        """Wait for the device."""
        self._module.synchronize(self._device)

    def empty_cache(self) -> None:
        """Hand what is cached and free back, on every device."""
        self._module.empty_cache()


class TorchAllocator:
    """The tracker of one device that keeps peaks."""

    def __init__(self, provider: Provider) -> None:
        """Ask ``provider``."""
        self._provider = provider

    def settle(self) -> None:
        """Hand cached blocks back, so that the next phase does not inherit this one's cache."""
        self._provider.synchronize()
        self._provider.empty_cache()

    def reset(self) -> None:
        """Begin a window at what is allocated now."""
        self._provider.synchronize()
        self._provider.reset_peak_memory_stats()

    def read(self) -> list[Reading]:
        """Return the peaks since the reset."""
        self._provider.synchronize()
        return self._told(_PEAKS)

    def baseline(self) -> list[Reading]:
        """Nothing: a device's peaks begin at zero."""
        return []

    def totals(self) -> list[Reading]:
        """Return how often memory was refused, and flushed for, since the process began."""
        return self._told(_TOTALS)

    def _told(self, names: Mapping[str, str]) -> list[Reading]:
        # A statistic that this torch does not keep is absent, never 0.
        statistics = self._provider.memory_stats()
        return [
            Reading(
                metric, statistics[name], "exact", f"{self._provider.name}.memory_stats {name}"
            )
            for metric, name in names.items()
            if name in statistics
        ]


class NoPeaks:
    """The tracker of MPS: what is held at a border, since torch keeps no peak there."""

    def __init__(self, mps: Any = torch.mps) -> None:
        """Ask ``mps``."""
        self._mps = mps

    def settle(self) -> None:
        """Hand cached blocks back."""
        self._mps.synchronize()
        self._mps.empty_cache()

    def reset(self) -> None:
        """Nothing can be reset."""

    def read(self) -> list[Reading]:
        """Return what is held now."""
        return [
            Reading(metric, int(getattr(self._mps, name)()), "sampled", self._source(name))
            for metric, name in _NOW.items()
        ]

    def baseline(self) -> list[Reading]:
        """Nothing: held by no tensor yet."""
        return []

    def totals(self) -> list[Reading]:
        """Nothing is counted."""
        return []

    def _source(self, name: str) -> str:
        return f"torch.mps.{name}, at borders of phases alone: MPS keeps no peak"


def tracker(device: str) -> Tracker:
    """Return the tracker of ``device``.

    Raises:
        Unavailable: it is the CPU, or torch does not see it.

    """
    where = torch.device(device)
    if where.type == "cpu":
        raise Unavailable("torch's allocator keeps no peaks for the CPU")
    if where.type != "mps":
        return TorchAllocator(Torch(where))
    if not torch.backends.mps.is_available():
        raise Unavailable("torch sees no MPS device")
    return NoPeaks()

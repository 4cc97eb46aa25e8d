"""What a self-check does on a GPU: known bytes, and work without end. All that needs torch."""

from __future__ import annotations

import gc
import time
from typing import Protocol

import torch
from torch import Tensor

from bench import trackers


class Work(Protocol):
    """One GPU, made to do something; a test has one that only says so."""

    def begin(self) -> None:
        """Bring up everything a computation needs: context, kernels, workspaces."""
        ...

    def allocate(self, nbytes: int) -> None:
        """Hold ``nbytes`` more, touched."""
        ...

    def release(self) -> None:
        """Give back what :meth:`allocate` took, to the device."""
        ...

    def reserved_bytes(self) -> int:
        """Return what torch holds of the device."""
        ...

    def busy(self, seconds: float) -> None:
        """Keep the device busy for about so long."""
        ...

    def tracker(self) -> trackers.Tracker:
        """Return the tracker that a memory run on this device has."""
        ...


_SIDE = 4096


class TorchWork:
    """The work, done by torch."""

    def __init__(self, device: str) -> None:
        """Work on ``device``, such as ``cuda:0``."""
        self._device = torch.device(device)
        self._held: list[Tensor] = []
        self._matrix: Tensor | None = None

    def begin(self) -> None:
        """Do everything once: kernels are loaded when they first run, into the device's memory."""
        self._matrix = torch.ones(_SIDE, _SIDE, dtype=torch.float16, device=self._device)
        self.busy(0.0)
        self.allocate(1)
        self.release()

    def allocate(self, nbytes: int) -> None:
        """Write ones."""
        self._held.append(torch.ones(nbytes, dtype=torch.uint8, device=self._device))
        torch.cuda.synchronize(self._device)

    def release(self) -> None:
        """Empty the cache too."""
        self._held.clear()
        gc.collect()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()

    def reserved_bytes(self) -> int:
        """Return the caching allocator's own figure."""
        return torch.cuda.memory_reserved(self._device)

    def busy(self, seconds: float) -> None:
        """Multiply matrices, a few milliseconds of work handed over at a time."""
        if self._matrix is None:
            raise RuntimeError("begin() comes first")
        end = time.monotonic() + seconds
        while True:
            for _ in range(8):
                torch.mm(self._matrix, self._matrix)
            torch.cuda.synchronize(self._device)
            if time.monotonic() >= end:
                return

    def tracker(self) -> trackers.Tracker:
        """Return torch's allocator."""
        found: trackers.Tracker = trackers.modules()["torch_allocator"].tracker(str(self._device))
        return found

"""The allocator's snapshot of a CUDA run, kept on request: who held what, allocated where.

``zometer run --memory-snapshot`` asks for it through a variable of the run's environment: it is
no part of what decides a run. The file opens in torch's viewer, pytorch.org/memory_viz.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

VARIABLE = "ZOMETER_MEMORY_SNAPSHOT"
SNAPSHOT = "snapshot.pickle"
_ENTRIES = 1_000_000
"""Allocations and frees remembered, each with its stack: about 1 kB of host memory."""


class Snapshot:
    """Records the history of an allocator, from now on."""

    def __init__(self, folder: Path, memory: Any = torch.cuda.memory) -> None:
        """Begin; ``memory`` is torch's module."""
        self._path, self._memory = folder / SNAPSHOT, memory
        memory._record_memory_history(max_entries=_ENTRIES)

    def keep(self) -> None:
        """Write what is known now; what was written before is replaced once this is whole.

        What goes wrong is told in the log: a snapshot is not worth the run, nor its error.
        """
        new = self._path.with_suffix(".new")
        try:
            self._memory._dump_snapshot(str(new))
            os.replace(new, self._path)
        except (OSError, MemoryError, RuntimeError) as error:
            new.unlink(missing_ok=True)
            print(f"no memory snapshot: {getattr(error, 'strerror', None) or error}")


def asked() -> bool:
    """Return whether this process was asked for one."""
    return bool(os.environ.get(VARIABLE))


def needs_cuda(device: str) -> str | None:
    """Return why there can be none of a run on ``device``, or None."""
    if device.startswith("cuda"):
        return None
    return f"a memory snapshot needs CUDA: torch keeps no history of allocations on {device}"

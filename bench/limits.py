"""A memory limit for a run on the CPU, enforced by the kernel: the wall of a smaller machine.

The limit is on ``RLIMIT_DATA`` of Linux: private writable memory, which is where tensors live;
mapped files and shared libraries don't count. It is set when the libraries are loaded, at what
the process holds then plus the run's limit. An allocation beyond it is refused on the spot, so
the run knows which phase asked for how many bytes.
"""

from __future__ import annotations

import resource
import sys

from bench.records import UserError
from bench.trackers.host_memory import status_bytes


class MemoryLimit:
    """The limit of this process, from now on."""

    def __init__(self, limit_bytes: int) -> None:
        """Allow ``limit_bytes`` more than what is held now.

        Raises:
            UserError: not Linux.

        """
        if sys.platform != "linux":
            raise UserError(
                f"memory_limit_bytes on the CPU needs Linux (RLIMIT_DATA); this is {sys.platform}."
            )
        self._base = status_bytes("VmData")
        self._hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (self._base + limit_bytes, self._hard))

    def in_use_bytes(self) -> int:
        """Return what counts against the limit now."""
        return status_bytes("VmData") - self._base

    def lift(self) -> None:
        """Take the limit away, so that a refused run can still write its record."""
        resource.setrlimit(resource.RLIMIT_DATA, (self._hard, self._hard))

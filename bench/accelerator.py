"""What the harness asks of the device of a run: to wait, and how much memory there is."""

from __future__ import annotations

from types import ModuleType

import torch


class Accelerator:
    """One device; of the CPU nothing is asked, and nothing is answered."""

    def __init__(self, device: str, vendor: ModuleType | None = None) -> None:
        """Ask ``vendor``: torch.cuda (ROCm too), torch.xpu or torch.mps, by the device's type."""
        self._device = torch.device(device)
        self.is_cpu = self._device.type == "cpu"
        self._vendor = vendor or getattr(torch, self._device.type)

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self._device.type == "mps":
            self._vendor.synchronize()
        elif not self.is_cpu:
            self._vendor.synchronize(self._device)

    def free_and_total_bytes(self) -> tuple[int, int] | None:
        """Return what the device has free for anybody, and in all; None where nobody can say."""
        if self.is_cpu:
            return None
        try:
            if self._device.type == "mps":
                total = int(self._vendor.recommended_max_memory())
                return total - int(self._vendor.driver_allocated_memory()), total
            free, total = self._vendor.mem_get_info(self._device)
        except (RuntimeError, AssertionError, AttributeError):  # lost, not built in, too old
            return None
        return int(free), int(total)

    def in_use_bytes(self) -> int | None:
        """Return what torch's allocator holds of the device, its cache with it."""
        if self.is_cpu:
            return None
        if self._device.type == "mps":
            return int(self._vendor.driver_allocated_memory())
        return int(self._vendor.memory_reserved(self._device))

    def allow(self, limit_bytes: int) -> None:
        """Refuse the allocation that would bring torch's allocator beyond ``limit_bytes``."""
        memory = self.free_and_total_bytes()
        share = min(1.0, limit_bytes / (memory[1] if memory else limit_bytes))
        if self._device.type == "mps":
            self._vendor.set_per_process_memory_fraction(share)
        else:  # "cuda" without a number is refused here
            self._vendor.set_per_process_memory_fraction(share, self._device.index or 0)

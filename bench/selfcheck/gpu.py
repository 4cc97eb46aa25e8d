"""Every GPU that this process may use, one after another: memory, energy, load, latency."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.devices.nvml import Devices, open_devices
from bench.selfcheck import gpu_energy, gpu_memory
from bench.selfcheck.verdict import Verdict, broken, missing
from bench.selfcheck.work import TorchWork


def verdicts() -> Iterator[Verdict]:
    """Check each GPU that torch sees; about ten seconds each, and 1 GiB of its memory."""
    with open_devices() as seen:
        hangs = seen.unavailable is not None and seen.unavailable.flag == "nvml_hangs"
        if seen.unavailable is not None and hangs:  # torch would hang with it
            yield broken("NVML", "is it there", seen.unavailable.reason)
            return
        if not torch.cuda.is_available():
            reason = "torch sees no CUDA device, so nothing can be put on it"
            if seen.unavailable is not None:
                reason = seen.unavailable.reason
            yield missing("NVML", "is it there", reason)
            return
    with opened() as devices:
        if devices.unavailable is not None:
            yield missing("NVML", "is it there", devices.unavailable.reason)
            return
        yield from not_opened(devices)
        yield from all_of(devices)


def not_opened(devices: Devices) -> Iterator[Verdict]:
    """Say which of torch's devices NVML could not open by their names, and why."""
    ordinals = {device.ordinal for device in devices}
    why = "; ".join(doubt.text for doubt in devices.doubts) or "it lists none of that name"
    for number, uuid in enumerate(_uuids()):
        if number not in ordinals:
            reason = f"torch sees {uuid} there, and NVML did not open it: {why}"
            yield broken(f"NVML, GPU {number}", "is it there", reason)


def opened() -> Devices:
    """Open the devices of this process in torch's order, by name: nothing is in doubt then.

    torch gives the UUID without the word before it, which differs for a part of a GPU (MIG).
    """
    numbers = _uuids()
    devices = open_devices(",".join(f"GPU-{number}" for number in numbers))
    if devices.unavailable is None:
        return devices
    parts = open_devices(",".join(f"MIG-{number}" for number in numbers))
    if parts.unavailable is None:
        devices.close()
        return parts
    parts.close()
    return devices


def all_of(devices: Devices) -> Iterator[Verdict]:
    """Check devices, each under torch's number."""
    for device in devices:
        label, work = f"GPU {device.ordinal}", TorchWork(f"cuda:{device.ordinal}")
        yield from gpu_memory.verdicts(device, work, label)
        yield from gpu_energy.verdicts(device, work, label)
        yield from gpu_energy.latencies(device, label)


def _uuids() -> list[str]:
    several = range(torch.cuda.device_count())
    return [str(torch.cuda.get_device_properties(number).uuid) for number in several]

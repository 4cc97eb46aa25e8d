"""The NVIDIA devices of the run as a source of the loop."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.devices import processes
from bench.devices.answer import Answer, Doubt, Unavailable, doubt
from bench.devices.nvml import Device, Devices, Process, open_devices
from bench.sampler.readings import Clock, Reading, Stream, together

_OPEN_SECONDS = 4.0
_CALL_SECONDS = 0.4  # what a hanging driver costs the host's readings, once
_SLOW = ("temperature", "clocks", "violations", "ecc")
_PROCESS_METRICS = ("process_used_bytes", "other_processes", "other_bytes")


class Gpus:
    """Reads all devices that the run may use."""

    def __init__(
        self, visible: str | None, pid: int, clock: Clock = time.monotonic_ns,
        call_seconds: float = _CALL_SECONDS,
    ) -> None:  # fmt: skip
        """Open NVML; ``devices.unavailable`` says why there is none."""
        self.devices: Devices = open_devices(visible, pid=pid, deadline_seconds=_OPEN_SECONDS)
        self.devices.guard.seconds = call_seconds
        self._clock = clock
        self._ours = _Family(pid)
        self._before: dict[str, Sequence[Process]] = {}

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """What is doubtful about which devices and which process these are."""
        return (*self.devices.doubts, *self._ours.doubts)

    def streams(self, interval_seconds: float) -> list[Stream]:
        """Return memory at every interval, the rest no faster than it changes."""
        if not self.devices:
            return []
        return [
            Stream("memory", interval_seconds, self.memory),
            # Power sensors read faster than this give errors or zeros.
            Stream("power", max(0.05, interval_seconds), lambda: self._read(("power", "energy"))),
            Stream("processes", max(0.1, interval_seconds), self.processes),
            Stream("load", max(0.1, interval_seconds), lambda: self._read(("load",))),
            Stream("slow", max(1.0, interval_seconds), lambda: self._read(_SLOW)),
        ]

    def full(self) -> list[Reading]:
        """Read everything once, counters first: they are asked for at borders."""
        return [
            *self._read(("energy", "power")),
            *self._read(("memory", "load", *_SLOW)),
            *self.processes(),
            *self._accounts(),
        ]

    def memory(self) -> list[Reading]:
        """Read bytes used on all devices, under one moment's name: they are added up."""
        t_ns = self._clock()
        wanted = "device_used_bytes"
        return [
            Reading(t_ns, "nvml", device.uuid, wanted, device.read(("memory",))[wanted])
            for device in self.devices
        ]

    def processes(self) -> list[Reading]:
        """Read what the run holds of each device, and who else is there."""
        found: list[Reading] = []
        for device in self.devices:
            t_ns = self._clock()
            found += together(t_ns, "nvml", device.uuid, self._processes_on(device))
        return found

    def facts(self) -> list[dict[str, Any]]:
        """Return what a record says once of each device: facts, capabilities, who was there."""
        return [
            {
                "uuid": device.uuid,
                "name": device.name,
                "index": device.index,
                "ordinal": device.ordinal,
                "is_mig": device.is_mig,
                "facts": {name: _told(answer) for name, answer in device.static().items()},
                "capabilities": {n: asdict(c) for n, c in device.capabilities().items()},
                "processes_before": _listed(device.processes()),
            }
            for device in self.devices
        ]

    def errors(self) -> list[dict[str, Any]]:
        """Return how often each function of NVML failed, and how."""
        return [
            {"function": function, "code": code, "count": count}
            for (function, code), count in sorted(self.devices.session.errors.items())
        ]

    def close(self) -> None:
        """Close NVML, unless a call hangs in it."""
        self.devices.close()

    def _read(self, subjects: tuple[str, ...]) -> list[Reading]:
        found: list[Reading] = []
        for device in self.devices:
            t_ns = self._clock()
            found += together(t_ns, "nvml", device.uuid, device.read(subjects))
        return found

    def _accounts(self) -> list[Reading]:
        return [
            Reading(self._clock(), "nvml", d.uuid, "accounting_peak_bytes", d.accounting_peak())
            for d in self.devices
        ]

    def _processes_on(self, device: Device) -> dict[str, Answer[Any] | Unavailable]:
        listed = device.processes()
        if isinstance(listed, Unavailable):
            return dict.fromkeys(_PROCESS_METRICS, listed)
        before = self._before.setdefault(device.uuid, listed)
        pid = self._ours.number_in(listed, before)
        others = [p for p in listed if not self._ours.has(p.pid)]
        source = listed[0].source if listed else "nvmlDeviceGetComputeRunningProcesses"
        held = [p.used_bytes for p in others]
        known = [used for used in held if used is not None]
        untold = Unavailable("the driver does not say what the other processes hold")
        return {
            "process_used_bytes": processes.own_memory(listed, pid),
            "other_processes": Answer(len(others), "1", source),
            "other_bytes": Answer(sum(known), "B", source) if known == held else untold,
        }


class _Family:
    """The run's process, those it started, and the number that a container's host gave it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._host_pid: int | None = None
        self._known = {pid: True}
        self.doubts: list[Doubt] = []

    def number_in(self, listed: Sequence[Process], before: Sequence[Process]) -> int:
        """Return the number under which the driver lists the run."""
        if any(p.pid == self._pid for p in listed) or self._host_pid is not None:
            return self._host_pid or self._pid
        old = {p.pid for p in before}
        new = [p.pid for p in listed if p.pid not in old and not Path(f"/proc/{p.pid}").exists()]
        if len(new) == 1 and uses_cuda(self._pid):
            self._host_pid = new[0]
            self._known[new[0]] = True
            text = (
                f"process {self._pid} is not listed, and process {new[0]}, which came after the "
                "start, does not exist in here: taken for it under the number of its host"
            )
            self.doubts.append(doubt("own_memory_unreadable", text))
            return new[0]
        return self._pid

    def has(self, pid: int) -> bool:
        """Return whether ``pid`` is the run's, or a descendant's."""
        if pid not in self._known:
            self._known[pid] = self._pid in _ancestors(pid)
        return self._known[pid]


def uses_cuda(pid: int) -> bool:
    """Return whether a process has CUDA up: NVML alone does not open this device."""
    try:
        files = list(Path(f"/proc/{pid}/fd").iterdir())
        return any(os.readlink(file).startswith("/dev/nvidia-uvm") for file in files)
    except OSError:
        return False


def _ancestors(pid: int) -> list[int]:
    found: list[int] = []
    while pid > 1 and len(found) < 64:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            break
        pid = int(stat.rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def _told(answer: Answer[Any] | Unavailable) -> Any:
    return {"reason": answer.reason} if isinstance(answer, Unavailable) else answer.value


def _listed(found: Sequence[Process] | Unavailable) -> Any:
    if isinstance(found, Unavailable):
        return {"reason": found.reason}
    return [{"pid": p.pid, "used_bytes": p.used_bytes, "kind": p.kind} for p in found]

"""The NVIDIA devices of the run as a source of the loop."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bench.devices import processes
from bench.devices.answer import Answer, Doubt, Unavailable, doubt
from bench.devices.nvml import Device, Devices, Process, open_devices
from bench.sampler.readings import Clock, Reading, Stream, together

_OPEN_SECONDS = 30.0  # several boards without persistence mode take seconds each
_CALL_SECONDS = 0.4  # what a hanging driver costs the host's readings, once
_SLOW = ("temperature", "clocks", "violations", "ecc")
_SEARCH_NS = 10 * 10**9  # from CUDA's start to a context, several boards included
_SLACK_BYTES, _SLACK_PART = 128 << 20, 8  # of a device's rise, that the driver keeps or is late
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
        self._before: dict[str, _Before] = {}

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
        pid = self._number_in(device, listed)
        others = [p for p in listed if not self._ours.has(p.pid)]
        source = listed[0].source if listed else "nvmlDeviceGetComputeRunningProcesses"
        held = [p.used_bytes for p in others]
        known = [used for used in held if used is not None]
        told: Answer[Any] | Unavailable = Answer(sum(known), "B", source)
        if known != held:
            told = Unavailable("the driver does not say what the other processes hold")
        count = len(others)
        if any(p.pid in self._ours.perhaps for p in others):
            count -= 1  # at least so many: one of them may be the run
            told = Unavailable("one of the other processes may be the run under another number")
        return {
            "process_used_bytes": processes.own_memory(listed, pid),
            "other_processes": Answer(count, "1", source),
            "other_bytes": told,
        }

    def _number_in(self, device: Device, listed: Sequence[Process]) -> int:
        """Return the number of the run in a list: in a container perhaps that of its host."""
        now_ns = self._clock()
        if not self._ours.searching(listed, now_ns):
            return self._ours.number
        used = device.read(("memory",))["device_used_bytes"].value
        before = self._before.get(device.uuid)
        if before is None or not self._ours.has_cuda:
            before = self._before[device.uuid] = _Before(listed, used)
        if used is not None and before.used is not None:
            self._ours.look_for(before.listed, listed, used - before.used)
        return self._ours.number


class _Before(NamedTuple):
    """A device when the run had no CUDA yet."""

    listed: Sequence[Process]
    used: int | None


class _Family:
    """The run's process, those it started, and the number that a container's host gave it."""

    def __init__(self, pid: int) -> None:
        self._pid = self.number = pid
        self._cuda_ns: int | None = None
        self._known = {pid: True}
        self.perhaps: set[int] = set()
        """Numbers that came with the run's CUDA, and could not be told to be the run."""
        self.doubts: list[Doubt] = []

    @property
    def has_cuda(self) -> bool:
        """Whether the run had CUDA up when it was last looked for."""
        return self._cuda_ns is not None

    def searching(self, listed: Sequence[Process], now_ns: int) -> bool:
        """Return whether the run's number is open: it is not listed, and its context is near."""
        if self.number != self._pid or any(p.pid == self._pid for p in listed):
            return False
        if self._cuda_ns is None and uses_cuda(self._pid):
            self._cuda_ns = now_ns
        return self._cuda_ns is None or now_ns - self._cuda_ns <= _SEARCH_NS

    def look_for(self, before: Sequence[Process], listed: Sequence[Process], risen: int) -> None:
        """Take a newcomer for the run where it holds what the device's use has risen by."""
        if not self.has_cuda:
            return
        old = {p.pid for p in before}
        new = {p.pid: p for p in listed if p.pid not in old and not _is_here(p.pid)}
        self.perhaps |= new.keys()
        slack = max(_SLACK_BYTES, risen // _SLACK_PART)
        found = processes.newcomer(before, listed, max(1, risen - slack))
        held = new[found].used_bytes if found in new else None
        if found is None or held is None or abs(held - risen) > slack:
            return
        self.number = found
        self._known[found] = True
        self.perhaps.clear()
        text = (
            f"process {self._pid} is not listed, and process {found}, which came with its CUDA "
            f"and holds what the device's use rose by ({risen >> 20} MiB), does not exist in "
            "here: taken for it under the number of its host"
        )
        self.doubts.append(doubt("own_memory_unreadable", text))

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


def _is_here(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


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

"""The NVIDIA devices that this process may use, read through NVML (package nvidia-ml-py).

For example::

    with open_devices() as devices:
        for device in devices:
            print(device.name, device.read()["device_used_bytes"])

Devices are found by UUID through CUDA_VISIBLE_DEVICES. Where there are none,
``devices.unavailable`` says why. No call here raises for what a driver does, or waits longer than
the deadline: a GPU that is lost or a driver that hangs is a reason in every value it was asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar, overload

from bench.devices import boards, facts, gauges, mask, processes
from bench.devices.answer import Answer, Doubt, Unavailable, doubt
from bench.devices.gauges import Found
from bench.devices.guard import Guard
from bench.devices.processes import Process
from bench.devices.session import Session

__all__ = ["Answer", "Capability", "Device", "Devices", "Process", "Unavailable", "open_devices"]

T = TypeVar("T")

GAUGES = ("memory", "process", "power", "energy", "load", "temperature", "clocks")
"""What ``Device.read`` reads by default. They differ in cost: name those that you want often."""


class _Mask(Enum):
    ENVIRONMENT = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Capability:
    """Whether a value can be had here, from where, how fast, or why not."""

    works: bool
    source: str
    microseconds: float
    """Of the call that gave it, and of what came with it."""
    reason: str | None = None


class Device:
    """One GPU, or one MIG instance of one."""

    def __init__(
        self, owner: Devices, ordinal: int, uuid: str, board: mask.Board, handle: Any
    ) -> None:
        """Made by :func:`open_devices`."""
        self._owner, self._handle = owner, handle
        self.ordinal = ordinal
        """CUDA's number in this process, where the mapping is not in doubt."""
        self.index = board.index
        """NVML's number of the board."""
        self.uuid = uuid
        self.name = board.name
        self.is_mig = uuid != board.uuid
        self._total: int | None = None

    def read(self, subjects: Collection[str] = GAUGES) -> Found:
        """Return values by name: memory, power, clocks, ... as they are now.

        Args:
            subjects: of :data:`GAUGES`, and "violations" and "ecc".

        Returns:
            Every name of the subjects (``gauges.NAMES``) -> an answer, or why there is none.

        """
        names = [name for subject in subjects for name in gauges.NAMES[subject]]
        return self._within(lambda: self._read(subjects), names)

    def static(self) -> Found:
        """Return versions, limits, modes: what a record says once about the device."""
        session = self._owner.session
        return self._within(
            lambda: facts.of_system(session) | facts.of_device(session, self._handle),
            facts.NAMES,
        )

    def energy_joules(self) -> Answer[float] | Unavailable:
        """Return the counter, in J since the driver was loaded; only differences mean much."""
        found = self.read(("energy",))
        return next(iter(found.values()))

    def violations(self) -> Found:
        """Return the seconds that each reason for lower clocks has held; see ``throttling``."""
        return self.read(("violations",))

    def processes(self) -> tuple[Process, ...] | Unavailable:
        """Return all processes on the device, as the driver lists them."""
        return self._owner.within(self._processes)

    def others(self, own: Collection[int] = ()) -> tuple[Process, ...] | Unavailable:
        """Return the processes on the device that are neither the watched one nor ``own``."""
        listed = self.processes()
        if isinstance(listed, Unavailable):
            return listed
        return processes.others(listed, {self._owner.pid, *own})

    def own_memory(self, holds_bytes: int = 0) -> Answer[int] | Unavailable:
        """Return what the watched process holds; ``holds_bytes`` is what it knows it holds."""
        return processes.own_memory(self.processes(), self._owner.pid, holds_bytes)

    def accounting_peak(self, pid: int | None = None) -> Answer[int] | Unavailable:
        """Return the most the process ever held, in bytes: exact, where accounting is on."""
        owner, wanted = self._owner, self._owner.pid if pid is None else pid
        return owner.within(
            lambda: gauges.accounting_peak(owner.session, self._handle, self.is_mig, wanted)
        )

    def capabilities(self) -> dict[str, Capability]:
        """Try everything once: what works here, what it costs, why the rest does not."""
        table: dict[str, Capability] = {}
        for subject in (*GAUGES, "violations", "ecc"):
            start = time.perf_counter()
            found = self.read((subject,))
            spent = (time.perf_counter() - start) * 1e6
            table |= {name: _capability(value, spent) for name, value in found.items()}
        start = time.perf_counter()
        peak = self.accounting_peak()
        table["accounting_peak_bytes"] = _capability(peak, (time.perf_counter() - start) * 1e6)
        return table

    def _read(self, subjects: Collection[str]) -> Found:
        found: Found = {}
        for subject in subjects:
            if subject == "process":
                listed = self._processes()
                found["process_used_bytes"] = processes.own_memory(listed, self._owner.pid)
            else:
                read = gauges.SUBJECTS[subject]
                found |= read(self._owner.session, self._handle, self.is_mig)
        return found

    def _processes(self) -> Any:
        if self._total is None:
            total = gauges.memory(self._owner.session, self._handle, self.is_mig)
            self._total = total["device_total_bytes"].value
        return processes.read(self._owner.session, self._handle, self._total)

    def _within(self, work: Callable[[], Found], names: Iterable[str]) -> Found:
        found = self._owner.within(work)
        return {name: found for name in names} if isinstance(found, Unavailable) else found


class Devices(Sequence[Device]):
    """The devices of this process, in CUDA's order; close them, or use them in ``with``."""

    def __init__(self, pid: int, deadline_seconds: float) -> None:
        """Made by :func:`open_devices`."""
        self.session = Session()
        self.guard = Guard(deadline_seconds, lambda: self.session.asking)
        self.pid = pid
        """The process whose memory is read."""
        self.unavailable: Unavailable | None = None
        """Why there is no device; None where there are some."""
        self.doubts: tuple[Doubt, ...] = ()
        """What is doubtful about which devices these are."""
        self._devices: tuple[Device, ...] = ()
        self._closed = False

    def within(self, work: Callable[[], T]) -> T | Unavailable:
        """Run ``work`` where a driver that hangs can't hold up the caller."""
        if self._closed:
            return Unavailable("these devices were closed")
        return self.guard(work)

    def close(self) -> None:
        """End the reading thread, then close NVML. May be called again."""
        if self._closed:
            return
        self._closed = True
        # In the thread that reads, so that nobody is inside NVML when it frees what it holds. A
        # call that hangs keeps the thread, and then NVML stays open.
        self.guard(self.session.stop)
        self.guard.stop()

    @overload
    def __getitem__(self, index: int) -> Device: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Device]: ...
    def __getitem__(self, index: int | slice) -> Device | Sequence[Device]:
        """Return a device by its place among the visible ones."""
        return self._devices[index]

    def __len__(self) -> int:
        """Count the visible devices."""
        return len(self._devices)

    def __enter__(self) -> Devices:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _open(self, visible: str | None, order: str | None) -> _Opened:
        failure = self.session.start()
        if failure is not None:
            return _Opened(failure)
        listed, lost = boards.read(self.session)
        if isinstance(listed, Unavailable):
            return _Opened(listed)
        chosen = mask.select(visible, listed, order)
        doubts = [*lost, *chosen.doubts]
        if lost and mask.by_number(visible):
            text = "some GPU can't be opened, and devices are counted by number: name them by UUID"
            doubts.append(doubt("mapping_ambiguous", text))
        found = []
        for ordinal, uuid in enumerate(chosen.uuids):
            handle = self.session.ask("nvmlDeviceGetHandleByUUID", uuid)
            if isinstance(handle, Unavailable):
                doubts.append(doubt("gpu_lost", f"{uuid}: {handle.reason}"))
            else:
                found.append(Device(self, ordinal, uuid, mask.board_of(uuid, listed), handle))
        failure = None if found else _nothing(visible, listed, doubts)
        return _Opened(failure, tuple(found), tuple(doubts))


@dataclass(frozen=True)
class _Opened:
    unavailable: Unavailable | None
    devices: tuple[Device, ...] = ()
    doubts: tuple[Doubt, ...] = ()


def open_devices(
    visible: str | _Mask | None = _Mask.ENVIRONMENT,
    *,
    pid: int | None = None,
    deadline_seconds: float = 5.0,
) -> Devices:
    """Open NVML and find the devices that CUDA shows to this process.

    Args:
        visible: as CUDA_VISIBLE_DEVICES, which is read if nothing is said; None is "not set".
            Where CUDA is up, give UUIDs joined by commas: then nothing is in doubt.
        pid: process whose memory is to be read; this one by default.
        deadline_seconds: how long one call into the driver may take.

    """
    devices = Devices(os.getpid() if pid is None else pid, deadline_seconds)
    mask_text = os.environ.get("CUDA_VISIBLE_DEVICES") if isinstance(visible, _Mask) else visible
    order = os.environ.get("CUDA_DEVICE_ORDER")
    opened = devices.within(lambda: devices._open(mask_text, order))
    if isinstance(opened, Unavailable):  # it hangs
        opened = _Opened(opened)
    devices.unavailable, devices.doubts = opened.unavailable, opened.doubts
    devices._devices = opened.devices
    return devices


def _nothing(
    visible: str | None, listed: Sequence[mask.Board], doubts: Sequence[Doubt]
) -> Unavailable:
    lost = [doubt for doubt in doubts if doubt.name == "gpu_lost"]
    if lost:
        return Unavailable(lost[0].text, flag="gpu_lost")
    if not listed:
        return Unavailable("NVML lists no GPU on this machine")
    return Unavailable(f"CUDA_VISIBLE_DEVICES={visible} shows none of {len(listed)} GPUs")


def _capability(value: Answer[Any] | Unavailable, microseconds: float) -> Capability:
    if isinstance(value, Unavailable):
        return Capability(False, "none", microseconds, value.reason)
    return Capability(True, value.source, microseconds)

"""Who uses a device, and how much of it is ours.

The list has traps: a driver that knows 32-byte records answers a binding that knows 24-byte ones
(R535 before 535.98, nvitop has the story), memory is "not available" under WDDM and WSL, some
containers show it as 0, others hide or renumber processes. Records are read here in both layouts,
and a list in neither is refused.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.devices.answer import Answer, Unavailable
from bench.devices.session import FUNCTION_MISSING, NOT_SUPPORTED, WRONG_VERSION, Session

KINDS = ("Compute", "Graphics", "MPSCompute")
_NOT_AVAILABLE = 2**64 - 1
_NO_INSTANCE = 2**32 - 1
_LARGEST_PID = 2**22 if sys.platform == "linux" else 2**32 - 2
_INSUFFICIENT_SIZE = 7


class _Record(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong))


class _InstanceRecord(ctypes.Structure):
    _fields_ = (*_Record._fields_, ("gi", ctypes.c_uint), ("ci", ctypes.c_uint))


class _EarlyR535Record(ctypes.Structure):
    _fields_ = (*_InstanceRecord._fields_, ("protected", ctypes.c_ulonglong))


_LAYOUTS = {"_v3": (_InstanceRecord, _EarlyR535Record), "_v2": (_InstanceRecord,), "": (_Record,)}


@dataclass(frozen=True)
class Process:
    """One process on one device."""

    pid: int
    """As the driver numbers it: in a container perhaps the host's number."""
    used_bytes: int | None
    """None where the driver does not say; a process with a context never holds 0 bytes."""
    kind: str
    """Compute, Graphics or MPSCompute."""
    gpu_instance: int | None
    """Of MIG."""
    source: str = field(default="", compare=False)
    """The function that listed it, and the layout if it is not the usual one."""


def read(session: Session, handle: Any, total_bytes: int | None) -> Any:
    """Return the processes on a device as a tuple, or :class:`Unavailable`.

    Args:
        session: open.
        handle: of a board or a MIG instance.
        total_bytes: of the device, to tell a sane list from a garbled one.

    """
    found: dict[tuple[int, int | None], Process] = {}
    for kind in KINDS:
        listed = _list(session, handle, kind, total_bytes)
        if isinstance(listed, Unavailable):
            if kind == "Compute":
                return listed
            continue  # a GPU for computing alone has no graphics processes to list
        for process in listed:
            found.setdefault((process.pid, process.gpu_instance), process)
    return tuple(found.values())


def own_memory(
    listed: Sequence[Process] | Unavailable, pid: int, holds_bytes: int = 0
) -> Answer[int] | Unavailable:
    """Return what the driver says that process ``pid`` holds of the device.

    Args:
        listed: as :func:`read` gave it.
        pid: as this process knows itself.
        holds_bytes: what the process is known to hold, such as torch's reserved memory.

    """
    if isinstance(listed, Unavailable):
        return listed
    ours = [process for process in listed if process.pid == pid]
    if not ours:
        flag = "own_memory_unreadable" if holds_bytes or listed else None
        return Unavailable(_absent(listed, pid, holds_bytes), flag=flag)
    used = [process.used_bytes for process in ours]
    known = [u for u in used if u is not None]
    if len(known) < len(used):
        text = f"process {pid} is listed, but the driver does not say what it holds"
        why = "Windows, WSL and some containers: take the device's use minus its idle use"
        return Unavailable(f"{text} ({why})", flag="own_memory_unreadable")
    return Answer(sum(known), "B", ours[0].source)


def others(listed: Iterable[Process], own: Collection[int]) -> tuple[Process, ...]:
    """Return the processes that are none of ``own``: on a used GPU they spoil a measurement."""
    return tuple(process for process in listed if process.pid not in own)


def newcomer(
    before: Iterable[Process], after: Iterable[Process], at_least_bytes: int
) -> int | None:
    """Return the one process number that came or grew by that much in between, or None.

    This is how a process in a container finds its number on the host: list, allocate, list.
    """
    held = {process.pid: process.used_bytes or 0 for process in before}
    grown = [
        process.pid
        for process in after
        if process.pid not in held
        or (process.used_bytes or 0) - held[process.pid] >= at_least_bytes
    ]
    return grown[0] if len(grown) == 1 else None


def _absent(listed: Sequence[Process], pid: int, holds_bytes: int) -> str:
    if not listed:
        what = f"the driver lists no process on the device, not even this one ({pid})"
        if holds_bytes:
            return f"{what}, which holds {holds_bytes} bytes: a container that hides processes"
        return f"{what}: it has no context there yet, or a container hides processes"
    what = f"process {pid} is not among the {len(listed)} on the device"
    if sys.platform == "linux" and not any(Path(f"/proc/{p.pid}").exists() for p in listed):
        return f"{what}, and none of those exists here: a container with its own process numbers"
    return f"{what}: it has no context there yet, or a container numbers processes its own way"


def _list(session: Session, handle: Any, kind: str, total: int | None) -> Any:
    garbled = failure = None
    for suffix, layouts in _LAYOUTS.items():
        function = f"nvmlDeviceGet{kind}RunningProcesses{suffix}"
        for layout in layouts:
            records = _records(session, function, handle, layout)
            if isinstance(records, Unavailable):
                failure = failure or records
                break
            known = ", 32-byte records" if layout is _EarlyR535Record else ""
            processes = [_process(record, kind, function + known) for record in records]
            if all(_sane(p, total) for p in processes):
                return processes
            garbled = garbled or Unavailable(
                f"{function}: the list is garbled (process {processes[-1].pid}): driver and "
                "binding disagree on its layout",
                flag="process_list_garbled",
            )
        if garbled:
            return garbled
        if failure and failure.code not in (FUNCTION_MISSING, NOT_SUPPORTED, WRONG_VERSION):
            return failure
    return failure


def _records(session: Session, function: str, handle: Any, layout: Any) -> Any:
    def read_all() -> Any:
        call = session.function(function)
        count = ctypes.c_uint(0)
        code, room = call(handle, ctypes.byref(count), None), None
        for _ in range(4):  # the list may grow between two calls
            if code != _INSUFFICIENT_SIZE:
                break
            size = count.value * 2 + 5
            # Room for the larger records whichever the layout: the library may write those.
            room, count = (_EarlyR535Record * size)(), ctypes.c_uint(size)
            code = call(handle, ctypes.byref(count), room)
        if code:
            return session.failed(function, code)
        step = ctypes.sizeof(layout)
        return [layout.from_buffer(room, i * step) for i in range(count.value)] if room else []

    return session.call(function, read_all)


def _process(record: Any, kind: str, source: str) -> Process:
    used = None if record.used in (0, _NOT_AVAILABLE) else int(record.used)
    instance = getattr(record, "gi", _NO_INSTANCE)
    return Process(record.pid, used, kind, None if instance == _NO_INSTANCE else instance, source)


def _sane(process: Process, total: int | None) -> bool:
    fits = total is None or process.used_bytes is None or process.used_bytes <= total
    return 0 < process.pid <= _LARGEST_PID and fits

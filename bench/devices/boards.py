"""The boards that NVML lists, with their MIG instances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.devices import mask
from bench.devices.answer import Doubt, Unavailable, doubt
from bench.devices.session import Session


def read(session: Session) -> tuple[list[mask.Board] | Unavailable, list[Doubt]]:
    """Return the boards that can be opened, and a doubt for each that can't."""
    count = session.ask("nvmlDeviceGetCount")
    if isinstance(count, Unavailable):
        return count, []
    boards: list[mask.Board] = []
    lost: list[Doubt] = []
    for index in range(count):
        handle = session.ask("nvmlDeviceGetHandleByIndex", index)
        uuid = (
            handle if isinstance(handle, Unavailable) else session.ask("nvmlDeviceGetUUID", handle)
        )
        if isinstance(uuid, Unavailable):
            lost.append(doubt("gpu_lost", f"GPU {index}: {uuid.reason}"))
            continue
        name = session.ask("nvmlDeviceGetName", handle)
        text = f"unnamed ({name.reason})" if isinstance(name, Unavailable) else str(name)
        mode = session.ask("nvmlDeviceGetMigMode", handle)
        mig = not isinstance(mode, Unavailable) and mode[0] == 1
        instances = tuple(_instances(session, handle)) if mig else ()
        boards.append(mask.Board(index, str(uuid), text, mig, instances))
    return boards, lost


def _instances(session: Session, board: Any) -> Iterator[mask.Instance]:
    count = session.ask("nvmlDeviceGetMaxMigDeviceCount", board)
    for index in range(0 if isinstance(count, Unavailable) else count):
        handle = session.ask("nvmlDeviceGetMigDeviceHandleByIndex", board, index)
        if isinstance(handle, Unavailable):
            continue  # places without an instance
        uuid = session.ask("nvmlDeviceGetUUID", handle)
        ids = [session.ask(f"nvmlDeviceGet{k}InstanceId", handle) for k in ("Gpu", "Compute")]
        if not isinstance(uuid, Unavailable):
            gi, ci = (-1 if isinstance(i, Unavailable) else i for i in ids)
            yield mask.Instance(str(uuid), gi, ci)

"""CUDA_VISIBLE_DEVICES, read as CUDA reads it, and mapped to UUIDs.

Rules (CUDA programming guide, appendix on environment variables; torch's own reading of them is
the oracle of the tests): integers, read up to the first character that is no digit, or prefixes
of UUIDs, by the kind of the first entry. The first entry that names no device ends the list, a
device named twice empties it. NVML numbers devices by PCI address, CUDA by default the fastest
first: with different models and no ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` a number says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.devices.answer import Doubt, doubt

_NUMBER = re.compile(r"\s*([+-]?\d+)")


@dataclass(frozen=True)
class Instance:
    """A MIG instance of a board."""

    uuid: str
    gpu_instance: int
    compute_instance: int


@dataclass(frozen=True)
class Board:
    """A GPU as NVML lists it; ``instances`` holds something only in MIG mode."""

    index: int
    uuid: str
    name: str
    mig: bool = False
    instances: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class Selection:
    """UUIDs of what CUDA shows, in CUDA's order, and the doubts about it."""

    uuids: tuple[str, ...]
    doubts: tuple[Doubt, ...] = field(default=())


def select(visible: str | None, boards: Sequence[Board], order: str | None) -> Selection:
    """Return what a process with this mask sees.

    Args:
        visible: ``CUDA_VISIBLE_DEVICES``; None where it is not set.
        boards: all boards, as NVML numbers them.
        order: ``CUDA_DEVICE_ORDER``; None where it is not set.

    """
    if visible is None:
        named: list[str | None] = [_whole_or_first(board) for board in boards]
        entries = [str(board.index) for board in boards]
    else:
        entries = visible.split(",") if visible else []
        prefix = visible[:4]
        find = {"GPU-": _by_prefix, "MIG-": _by_instance}.get(prefix, _by_number)
        named = [find(entry, boards) for entry in entries]
    doubts = list(_order_doubts(by_number(visible) and bool(entries), boards, order))
    uuids: list[str] = []
    for entry, uuid in zip(entries, named, strict=True):
        if uuid is None:
            text = f"CUDA_VISIBLE_DEVICES={visible}: '{entry}' names no device here, so CUDA"
            doubts.append(doubt("mask_cut", f"{text} ignores it and all after it"))
            break
        if uuid in uuids:
            text = f"CUDA_VISIBLE_DEVICES={visible} names {uuid} twice, so CUDA shows no device"
            return Selection((), (*doubts, doubt("mask_cut", text)))
        uuids.append(uuid)
    instances = {i.uuid for board in boards for i in board.instances}
    if len(uuids) > 1 and any(uuid in instances for uuid in uuids):
        text = "a process can use one MIG instance and nothing beside it; the first is taken"
        doubts.append(doubt("mapping_ambiguous", text))
        uuids = [next(uuid for uuid in uuids if uuid in instances)]
    return Selection(tuple(uuids), tuple(doubts))


def by_number(visible: str | None) -> bool:
    """Return whether this mask counts devices, and does not name them."""
    return visible is None or not visible.startswith(("GPU-", "MIG-"))


def board_of(uuid: str, boards: Sequence[Board]) -> Board:
    """Return the board that has this UUID, or an instance with it."""
    return next(b for b in boards if uuid in (b.uuid, *(i.uuid for i in b.instances)))


def _whole_or_first(board: Board) -> str | None:
    if not board.mig:
        return board.uuid
    return board.instances[0].uuid if board.instances else None


def _by_number(entry: str, boards: Sequence[Board]) -> str | None:
    match = _NUMBER.match(entry)  # as strtol: "1gpu" is 1
    number = int(match[1]) if match else -1
    return _whole_or_first(boards[number]) if 0 <= number < len(boards) else None


def _by_prefix(entry: str, boards: Sequence[Board]) -> str | None:
    if not entry.startswith("GPU-"):
        return None
    found = [board for board in boards if board.uuid.startswith(entry)]
    return _whole_or_first(found[0]) if len(found) == 1 else None


def _by_instance(entry: str, boards: Sequence[Board]) -> str | None:
    if not entry.startswith("MIG-"):
        return None
    found = [
        instance.uuid
        for board in boards
        for instance in board.instances
        if instance.uuid.startswith(entry) or entry == _old_name(board, instance)
    ]
    return found[0] if len(found) == 1 else None


def _old_name(board: Board, instance: Instance) -> str:
    # Drivers before R470 named instances by their board.
    return f"MIG-{board.uuid}/{instance.gpu_instance}/{instance.compute_instance}"


def _order_doubts(numbers: bool, boards: Sequence[Board], order: str | None) -> list[Doubt]:
    if not numbers or order == "PCI_BUS_ID":
        return []
    names = sorted({board.name for board in boards})
    if len(names) < 2:
        return []
    text = f"devices are counted by number among different models ({', '.join(names)}), and CUDA"
    advice = "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by UUID"
    return [doubt("mapping_ambiguous", f"{text} counts the fastest first, NVML by bus: {advice}")]

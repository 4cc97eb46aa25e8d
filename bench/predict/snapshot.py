"""torch's memory snapshots: a predicted step written as one, and a real one read and replayed.

What is written has the form of ``torch.cuda.memory._snapshot()``: torch's viewer opens it
(https://docs.pytorch.org/memory_viz, or ``python -m torch.cuda._memory_viz trace_plot``). Frames
tell phase, module and operation instead of lines of code.

What is read may come from anybody, so nothing but plain data is unpickled.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.predict.allocator import MIB, OutOfMemory, Settings
from bench.predict.log import Log
from bench.predict.snapshot_export import INACTIVE, Snapshot, export, play
from bench.records import UserError

__all__ = [
    "Comparison", "End", "Snapshot", "compare", "export", "load", "peak_reserved", "save",
    "settings_of", "to_log",
]  # fmt: skip


_BLOCKS = ("alloc", "free_completed")
"""Actions of a trace that say what was asked for; the others say what the allocator did."""


def save(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot as torch's viewer reads it."""
    path.write_bytes(pickle.dumps(snapshot))


def load(path: Path) -> Snapshot:
    """Read a snapshot that torch (``_dump_snapshot``) or :func:`save` wrote.

    Raises:
        UserError: it is no snapshot, or holds more than plain data.

    """
    try:
        found = _PlainData(io.BytesIO(path.read_bytes())).load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"Expected a torch memory snapshot at {path}, got: {error}.") from None
    if not isinstance(found, dict) or not {"segments", "device_traces"} <= found.keys():
        raise UserError(
            f"Expected a torch memory snapshot at {path} (segments and device_traces), got a "
            f"pickled {type(found).__name__}."
        )
    for entry in (entry for trace in found["device_traces"] for entry in trace):
        wanted = {"action", "addr", "size"} if entry.get("action") in _BLOCKS else {"action"}
        if lacking := sorted(wanted - entry.keys()):
            raise UserError(
                f"Expected a torch memory snapshot at {path}, got one whose trace has an entry "
                f"without {', '.join(lacking)}."
            )
    return found


def settings_of(snapshot: Mapping[str, Any]) -> Settings:
    """Return the allocator settings that a snapshot tells of, else torch's defaults."""
    told = snapshot.get("allocator_settings", {})
    split = told.get("max_split_size", -1)
    growing = any(segment.get("is_expandable", False) for segment in snapshot.get("segments", ()))
    return Settings(
        expandable=bool(told.get("expandable_segments", growing)),
        max_split=split if 0 < split < 1 << 62 else None,
        large_segment=told.get("large_segment_size", 20 * MIB),
    )


def to_log(snapshot: Mapping[str, Any]) -> Log:
    """Return what a snapshot's trace asked for.

    Blocks that were live before the trace began come first, in phase ``before``, in the order of
    their addresses; how they came to lie where they lay is not in a snapshot.
    """
    log = Log()
    for device, trace in enumerate(snapshot["device_traces"]):
        live = {
            address: log.alloc(size, device, "before", "", "", "other")
            for address, size in sorted(_before(snapshot, device, trace).items())
        }
        for entry in trace:
            action, address = entry["action"], entry.get("addr")
            if action == "alloc":
                op = _where(entry.get("frames") or [])
                live[address] = log.alloc(entry["size"], device, "trace", op, "", "other")
            elif action == "free_completed":
                log.free(live.pop(address), "trace")
    return log


@dataclass(frozen=True)
class End:
    """What is held when a trace ends; bytes."""

    reserved: int
    allocated: int
    """In blocks, rounded."""
    segments: int


@dataclass(frozen=True)
class Comparison:
    """A real trace against the allocator model, for one device; bytes."""

    device: int
    events: int
    requested_peak: int
    """Live bytes as asked for: the trace's own, the same for both."""
    real_peak: int
    """Most bytes reserved while the trace ran."""
    model_peak: int
    real: End
    model: End
    complete: bool
    """The trace begins with an empty device; if not, what came before is guessed."""
    streams: int
    """Of the trace: each has a cache of its own in torch, and the model has one."""

    @property
    def error(self) -> float:
        """The model's peak against the real one: 0.01 is a hundredth too much."""
        return self.model_peak / self.real_peak - 1 if self.real_peak else 0.0

    @property
    def agrees(self) -> bool:
        """Whether all figures are the same to the byte."""
        return (self.real_peak, self.real) == (self.model_peak, self.model)


def compare(snapshot: Mapping[str, Any], settings: Settings | None = None) -> list[Comparison]:
    """Replay a snapshot's trace and compare what is reserved, device by device.

    A snapshot does not tell the device's size: where the run emptied its cache on the way, give
    ``settings`` with the ``capacity`` that torch had.

    Raises:
        UserError: the snapshot holds no trace (its history was not recorded), or what it asks for
            does not fit the settings' capacity.

    """
    log = to_log(snapshot)
    if not len(log):
        raise UserError(
            "Expected a snapshot with a trace, got none: call "
            "torch.cuda.memory._record_memory_history() before the step."
        )
    settings = settings or settings_of(snapshot)
    try:
        return [_compared(snapshot, log, device, settings) for device in log.devices()]
    except OutOfMemory as error:
        raise UserError(
            f"Expected a capacity that holds the trace, got {settings.capacity} B: {error}. Leave "
            "it out, or give what torch calls the total capacity."
        ) from None


def _compared(
    snapshot: Mapping[str, Any], log: Log, device: int, settings: Settings
) -> Comparison:
    trace = snapshot["device_traces"][device]
    real = _end([s for s in snapshot["segments"] if s.get("device", 0) == device])
    peak, begin = peak_reserved(trace, real.reserved)
    played, segments = play(log, device, settings)
    model = _end(segments)
    return Comparison(
        device=device,
        events=int(((log.device == device) & (log.nbytes > 0)).sum()),
        requested_peak=log.live_peak(device),
        real_peak=peak,
        model_peak=peak_reserved(played, model.reserved)[0],
        real=real,
        model=model,
        complete=begin == 0,
        streams=len({entry.get("stream", 0) for entry in trace if entry["action"] == "alloc"}),
    )


def peak_reserved(trace: Sequence[Mapping[str, Any]], end: int) -> tuple[int, int]:
    """Return the most bytes reserved while a trace ran, and those at its begin, from its end's."""
    steps = [_growth(entry) for entry in trace]
    level = peak = begin = end - sum(steps)
    for step in steps:
        level += step
        peak = max(peak, level)
    return peak, begin


def _end(segments: Sequence[Mapping[str, Any]]) -> End:
    return End(
        sum(segment["total_size"] for segment in segments),
        sum(segment["allocated_size"] for segment in segments),
        len(segments),
    )


class _PlainData(pickle.Unpickler):
    """Refuses everything that a pickle could run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, where only plain data belongs")


def _before(
    snapshot: Mapping[str, Any], device: int, trace: list[dict[str, Any]]
) -> dict[int, int]:
    """Return address and bytes of the blocks that were there before the trace."""
    found: dict[int, int] = {}
    live: set[int] = set()
    gone: set[int] = set()  # of the earlier ones
    for entry in trace:
        address = entry.get("addr", 0)
        if entry["action"] == "alloc":
            live.add(address)
        elif entry["action"] == "free_completed":
            if address not in live and address not in gone:
                found[address] = entry["size"]
                gone.add(address)
            live.discard(address)
    for segment in snapshot["segments"]:
        if segment.get("device", 0) != device:
            continue
        address = segment["address"]
        for block in segment["blocks"]:
            at = block.get("address", address)
            if block["state"] != INACTIVE and at not in live:
                found[at] = block.get("requested_size", block["size"])
            address = at + block["size"]
    return found


def _growth(entry: Mapping[str, Any]) -> int:
    """Return by how much an entry of a trace changes what is reserved."""
    size: int = entry.get("size", 0)
    if entry["action"] in ("segment_alloc", "segment_map"):
        return size
    return -size if entry["action"] in ("segment_free", "segment_unmap") else 0


def _where(frames: list[dict[str, Any]]) -> str:
    return str(frames[0].get("name", "")) if frames else ""

"""A log, put through an allocator model, in the form of ``torch.cuda.memory._snapshot()``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.predict.allocator import Allocator, Settings
from bench.predict.blocks import Block
from bench.predict.expandable import Expandable
from bench.predict.kernels import Extra, extras
from bench.predict.log import ALLOC, Log
from bench.predict.replay import allocator

Snapshot = dict[str, Any]
Frames = list[dict[str, Any]]

ACTIVE, INACTIVE = "active_allocated", "inactive"


def export(log: Log, settings: Settings | None = None, workspace: int | None = None) -> Snapshot:
    """Return a log, put through an allocator, in the form of torch's snapshots.

    Args:
        log: what was traced.
        settings: the allocator's.
        workspace: bytes of cuBLAS's, for a step on a GPU: kernels' own temporaries are put in
            too. None: the log as it is.

    Raises:
        OutOfMemory: the settings' capacity is too small.

    """
    settings = settings or Settings()
    devices = log.devices()
    traces: list[list[dict[str, Any]]] = [[] for _ in range(max(devices, default=-1) + 1)]
    segments: list[dict[str, Any]] = []
    for device in devices:
        beside = [] if workspace is None else extras(log, device, workspace)
        traces[device], held = play(log, device, settings, beside)
        segments += held
    return {
        "segments": segments,
        "device_traces": traces,
        "allocator_settings": {
            "expandable_segments": settings.expandable,
            "max_split_size": -1 if settings.max_split is None else settings.max_split,
            "garbage_collection_threshold": settings.collect_above,
        },
        "external_annotations": [],
    }


def play(
    log: Log, device: int, settings: Settings, beside: Sequence[Extra] = ()
) -> tuple[list[dict[str, Any]], Frames]:
    """Return the trace and the segments at its end of one device.

    ``beside`` are blocks that a GPU takes beside those of the log.
    """
    model = allocator(settings)
    player = _Player(model)
    cache: dict[tuple[int, ...], Frames] = {}
    named = [log.column(name).tolist() for name in ("phase", "module", "op")]
    rows = zip(log.kind.tolist(), log.block.tolist(), log.nbytes.tolist(), *named, strict=True)
    mine = (log.device == device).tolist()
    waiting: dict[int, list[Extra]] = {}
    for extra in beside:
        waiting.setdefault(extra.row, []).append(extra)
    for tick, (kind, number, size, *codes) in enumerate(rows):
        player.tick = tick
        for extra in waiting.get(tick, ()):
            player.beside(extra)
        if not mine[tick] or not size:
            continue
        key = tuple(codes)
        player.frames = cache.setdefault(key, _frames(log, key))
        if kind == ALLOC:
            player.alloc(number, size)
        else:
            player.free(number)
    for extra in waiting.get(len(mine), ()):
        player.beside(extra)
    told = {block.address: frames for block, frames in player.held.values()}
    return player.trace, _segments(model, device, told)


class _Player:
    """Puts requests through an allocator, and writes down what happens."""

    def __init__(self, model: Allocator) -> None:
        self.trace: list[dict[str, Any]] = []
        self.held: dict[int, tuple[Block, Frames]] = {}
        self.frames: Frames = []
        """Where in the step the next request is made."""
        self.tick = 0
        self._model = model
        self._beside = 0
        model.on_segment = lambda action, address, size: self._entry(action, address, size)

    def alloc(self, number: int, size: int) -> None:
        block = self._model.malloc(size)
        self.held[number] = (block, self.frames)
        self._entry("alloc", block.address, size)

    def free(self, number: int) -> None:
        block, self.frames = self.held.pop(number)
        for action in ("free_requested", "free_completed"):
            self._entry(action, block.address, block.asked)
        self._model.free(block)

    def beside(self, extra: Extra) -> None:
        what = "cuBLAS workspace" if extra.stays else "temporary of the kernel"
        before, self._beside = self.frames, self._beside - 1  # a number that no log has
        self.frames = [{"filename": "kernel", "line": 0, "name": what}, *before]
        self.alloc(self._beside, extra.nbytes)
        if not extra.stays:
            self.free(self._beside)
        self.frames = before

    def _entry(self, action: str, address: int, size: int) -> None:
        self.trace.append(
            {
                "action": action,
                "addr": address,
                "size": size,
                "stream": 0,
                "time_us": self.tick,
                "frames": self.frames,
                "compile_context": "N/A",
                "user_metadata": "",
            }
        )


def _frames(log: Log, codes: tuple[int, ...]) -> Frames:
    """Return phase, module and operation as frames, the innermost first."""
    phase, module, op = (
        log.names(name)[code] for name, code in zip(("phase", "module", "op"), codes, strict=True)
    )
    names = [("op", op), ("module", module), ("phase", phase)]
    return [{"filename": kind, "line": 0, "name": name} for kind, name in names if name]


def _segments(model: Allocator, device: int, frames: Mapping[int, Frames]) -> list[dict[str, Any]]:
    """Return what is reserved, each stretch of mapped memory a segment."""
    found: list[dict[str, Any]] = []
    for pieces in model.segments():
        stretch: list[Block] = []
        for piece in [*pieces, None]:
            if piece is not None and piece.mapped:
                stretch.append(piece)
            elif stretch:
                found.append(_segment(stretch, device, frames, isinstance(model, Expandable)))
                stretch = []
    return found


def _segment(
    pieces: list[Block], device: int, frames: Mapping[int, Frames], expandable: bool
) -> dict[str, Any]:
    live = [piece for piece in pieces if not piece.free]
    return {
        "device": device,
        "address": pieces[0].address,
        "total_size": sum(piece.size for piece in pieces),
        "allocated_size": sum(piece.size for piece in live),
        "active_size": sum(piece.size for piece in live),
        "requested_size": sum(piece.asked for piece in live),
        "stream": 0,
        "segment_type": "small" if pieces[0].pool.small else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": expandable,
        "frames": [],
        "blocks": [
            {
                "address": piece.address,
                "size": piece.size,
                "requested_size": piece.asked,
                "state": INACTIVE if piece.free else ACTIVE,
                "frames": frames.get(piece.address, []) if not piece.free else [],
            }
            for piece in pieces
        ],
    }

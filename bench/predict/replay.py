"""A recorded step put through an allocator: peaks, peaks by phase, and the least memory it takes.

The log is read once into plain lists (``Events``), so that a replay costs a few microseconds an
event and a search over capacities is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bench.predict.allocator import MIB, Allocator, OutOfMemory, Settings
from bench.predict.blocks import Block
from bench.predict.expandable import Expandable
from bench.predict.log import ALLOC, Log

GRAIN = 8 * MIB
"""How finely the least capacity is searched for; below this a driver's own pages decide."""


@dataclass(frozen=True)
class Run:
    """Consecutive events in one phase."""

    phase: str
    kinds: list[int]
    blocks: list[int]
    sizes: list[int]


@dataclass(frozen=True)
class Events:
    """What one device is asked for, in order."""

    runs: tuple[Run, ...]
    blocks: int
    """Block numbers are below this."""

    def __len__(self) -> int:
        """Return the number of events."""
        return sum(len(run.kinds) for run in self.runs)


@dataclass(frozen=True)
class Failure:
    """Where a replay ran out of memory; bytes."""

    event: int
    phase: str
    asked: int
    allocated: int
    reserved: int


@dataclass(frozen=True)
class Replay:
    """What the allocator's statistics would read afterwards; bytes."""

    requested_peak: int
    """Live tensors as asked for: ``requested_bytes.all.peak``."""
    allocated_peak: int
    """Their blocks: ``max_memory_allocated``."""
    reserved_peak: int
    """``max_memory_reserved``."""
    requested: dict[str, int]
    """Peak while each phase was the innermost one."""
    allocated: dict[str, int]
    reserved: dict[str, int]
    retries: int
    """Times the cache had to be emptied: each stops the device."""
    failure: Failure | None = None


def events(log: Log, device: int = 0) -> Events:
    """Return the requests of one device, as they are in the log."""
    columns = (log.kind, log.block, log.nbytes, log.device, log.column("phase"))
    return cut_into_runs(*columns, names=log.names("phase"), device_index=device)


def cut_into_runs(
    kind: NDArray[np.int64],
    block: NDArray[np.int64],
    nbytes: NDArray[np.int64],
    device: NDArray[np.int64],
    phase: NDArray[np.int64],
    *,
    names: Sequence[str],
    device_index: int,
) -> Events:
    """Return one device's rows of a log's columns; requests of 0 B reach no allocator."""
    rows = np.flatnonzero((device == device_index) & (nbytes > 0))
    kind, block, nbytes, phase = kind[rows], block[rows], nbytes[rows], phase[rows]
    borders = np.flatnonzero(np.diff(phase, prepend=-1)).tolist()
    runs = tuple(
        Run(
            names[phase[begin]],
            kind[begin:end].tolist(),
            block[begin:end].tolist(),
            nbytes[begin:end].tolist(),
        )
        for begin, end in pairwise([*borders, len(rows)])
    )
    return Events(runs, int(block.max(initial=-1)) + 1)


def allocator(settings: Settings) -> Allocator:
    """Return the model of one device."""
    return Expandable(settings) if settings.expandable else Allocator(settings)


def replay(asked: Events, settings: Settings | None = None) -> Replay:
    """Put a step through an allocator; one that does not fit says where in ``failure``."""
    device = allocator(settings or Settings())
    held: list[Block | None] = [None] * asked.blocks
    peaks: list[dict[str, int]] = [{}, {}, {}]
    failure, done = None, 0
    for run in asked.runs:
        device.reset_peaks()
        failed = _play(device, run, held)
        found = (device.requested_peak, device.allocated_peak, device.reserved_peak)
        for table, peak in zip(peaks, found, strict=True):
            table[run.phase] = max(peak, table.get(run.phase, 0))
        if failed is not None:
            at, error = failed
            held_then = (error.asked, error.allocated, error.reserved)
            failure = Failure(done + at, run.phase, *held_then)
            break
        done += len(run.kinds)
    tops = [max(table.values(), default=0) for table in peaks]
    requested, allocated, reserved = peaks
    return Replay(
        tops[0],
        tops[1],
        tops[2],
        requested,
        allocated,
        reserved,
        device.retries,
        failure,
    )


def least_capacity(asked: Events, settings: Settings | None = None, grain: int = GRAIN) -> int:
    """Return the least capacity in bytes with which the step still runs, retries and all.

    Found by bisection between the live bytes, which no allocator goes below, and what it reserves
    when nothing stops it; so it is at most ``grain`` too large. That a step runs with more memory
    if it runs with less is taken for granted; a caching allocator does not promise it.
    """
    settings = settings or Settings()
    free = replay(asked, replace(settings, capacity=None))
    fails, works = free.requested_peak - 1, free.reserved_peak
    while works - fails > grain:
        middle = (fails + works) // 2
        if replay(asked, replace(settings, capacity=middle)).failure is None:
            works = middle
        else:
            fails = middle
    return works


def _play(device: Allocator, run: Run, held: list[Block | None]) -> tuple[int, OutOfMemory] | None:
    """Put one run of events through; return where it failed, if it did."""
    malloc, free, at = device.malloc, device.free, 0
    try:
        for at, (kind, block, size) in enumerate(  # noqa: B007 (read where it fails)
            zip(run.kinds, run.blocks, run.sizes, strict=True)
        ):
            if kind == ALLOC:
                held[block] = malloc(size)
            else:
                live = held[block]
                assert live is not None  # a log frees only what it allocated
                free(live)
    except OutOfMemory as error:
        return at, error
    return None

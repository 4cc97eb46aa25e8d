"""torch's CUDA caching allocator in plain Python: what ``reserved`` becomes for given requests.

The rules of ``c10/cuda/CUDACachingAllocator.cpp`` (2.13; constants in the installed header
``c10/core/AllocatorConfig.h``) for one device and one stream, without graph or user pools:

* sizes are rounded up to 512 B; up to 1 MiB they come from the small pool's 2 MiB segments,
  below 10 MiB from 20 MiB segments, above from segments of their size rounded to 2 MiB;
* best fit by size, then by address; the rest is split off if it is at least 512 B (small pool) or
  more than 1 MiB (large pool); a freed block merges with its free neighbours;
* nothing goes back to the driver until it refuses: then whole free segments are released and the
  request is tried again (a retry: slow), and only then it is out of memory.

Differs from a real device in one thing: the driver hands out rising addresses here, so that of
two free blocks of one size the older segment's is taken. Not compared with a GPU yet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.predict.blocks import Block, Pool

MIB = 1 << 20
ROUND = 512
SMALL = MIB
SMALL_SEGMENT = 2 * MIB
LARGE = 10 * MIB
LARGE_SEGMENT = 20 * MIB
ROUND_LARGE = 2 * MIB


@dataclass(frozen=True)
class Settings:
    """What ``PYTORCH_CUDA_ALLOC_CONF`` decides, and how much the driver has to give; bytes."""

    expandable: bool = False
    capacity: int | None = None
    """What the allocator may hold at most; None: no end."""
    max_split: int | None = None
    """``max_split_size_mb``: larger blocks are never split. None: no limit, as in torch."""
    collect_above: float = 0.0
    """``garbage_collection_threshold``: share of the capacity; 0 is off, as in torch."""
    large_segment: int = LARGE_SEGMENT
    """``large_segment_size_mb``: the segment that requests of 1 to 10 MiB share."""


class OutOfMemory(Exception):
    """The driver refused although everything that could be released was."""

    def __init__(self, asked: int, allocated: int, reserved: int) -> None:
        """Keep the request and what was held when it failed, in bytes."""
        super().__init__(f"{asked} B asked for, {allocated} B allocated, {reserved} B reserved")
        self.asked, self.allocated, self.reserved = asked, allocated, reserved


def rounded(nbytes: int) -> int:
    """Return the bytes a request takes: the next multiple of 512."""
    return max(ROUND, -(-nbytes // ROUND) * ROUND)


class Allocator:
    """One device's allocator with ordinary segments.

    >>> device = Allocator()
    >>> block = device.malloc(3_000_000)
    >>> device.allocated, device.reserved
    (3000320, 20971520)

    """

    def __init__(
        self,
        settings: Settings | None = None,
        on_segment: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Begin with nothing held; ``on_segment(action, address, bytes)`` hears of the driver."""
        self.settings = settings or Settings()
        self.max_split = self.settings.max_split or 1 << 62
        self.capacity = 1 << 62 if self.settings.capacity is None else self.settings.capacity
        self.pools = {True: Pool(True), False: Pool(False)}
        self.live: dict[int, Block] = {}
        self.on_segment = on_segment
        self.requested = self.allocated = self.reserved = 0
        self.retries = 0
        self.next_address = 1 << 40
        self.reset_peaks()

    def reset_peaks(self) -> None:
        """Let the peaks begin at what is held now, as ``reset_peak_memory_stats`` does."""
        self.requested_peak, self.allocated_peak = self.requested, self.allocated
        self.reserved_peak = self.reserved

    def malloc(self, nbytes: int) -> Block:
        """Hand out a block of at least ``nbytes`` (more than 0).

        Raises:
            OutOfMemory: not even after releasing what is cached.

        """
        size = rounded(nbytes)
        pool = self.pools[size <= SMALL]
        block = self._take(pool, size) or self._grow(pool, size)
        if self._splits(pool, size, block.size - size):
            pool.put(block.cut(size))
        block.free, block.asked = False, nbytes
        self.live[block.address] = block
        self.requested += nbytes
        self.allocated += block.size
        if self.requested > self.requested_peak:
            self.requested_peak = self.requested
        if self.allocated > self.allocated_peak:
            self.allocated_peak = self.allocated
        return block

    def free(self, block: Block) -> None:
        """Take a block back into the cache, merged with its free neighbours."""
        del self.live[block.address]
        self.requested -= block.asked
        self.allocated -= block.size
        block.free, block.asked = True, 0
        block.pool.merge(block)
        block.pool.put(block)

    def release_cached(self) -> None:
        """Give every wholly free segment back to the driver, as ``empty_cache`` does."""
        for pool in (self.pools[False], self.pools[True]):
            for _, _, block in list(pool.free):
                if block.before is None and block.after is None:
                    self._release(block)

    def segments(self) -> Iterator[list[Block]]:
        """Yield the pieces of each segment in order of address."""
        held = [b for pool in self.pools.values() for _, _, b in pool.free]
        held += [b for pool in self.pools.values() for _, b in pool.unmapped]
        heads = [b for b in (*held, *self.live.values()) if b.before is None]
        for head in sorted(heads, key=lambda b: b.address):
            pieces, block = [], head
            while block is not None:
                pieces.append(block)
                block = block.after  # type: ignore[assignment]
            yield pieces

    def _take(self, pool: Pool, size: int) -> Block | None:
        """Return the best fitting free piece, taken off its list."""
        if self.settings.collect_above:
            pool.calls += 1
        at = bisect_left(pool.free, (size,))
        if at == len(pool.free):
            return None
        return pool.free.pop(at)[2] if self._suits(size, pool.free[at][0]) else None

    def _suits(self, size: int, found: int) -> bool:
        """With ``max_split``: large pieces are for large requests, and not far too large ones."""
        if size < self.max_split:
            return found < self.max_split
        return found < size + LARGE_SEGMENT  # torch's max_non_split_rounding

    def _splits(self, pool: Pool, size: int, rest: int) -> bool:
        return rest >= ROUND if pool.small else rest > SMALL and size < self.max_split

    def _segment_size(self, size: int) -> int:
        if size <= SMALL:
            return SMALL_SEGMENT
        return (
            self.settings.large_segment if size < LARGE else -(-size // ROUND_LARGE) * ROUND_LARGE
        )

    def _grow(self, pool: Pool, size: int) -> Block:
        """Return a piece of fresh memory, whatever must be released for it."""
        if self.settings.collect_above:
            self._collect()
        block = self._obtain(pool, size)
        if block is None and self._release_oversized(pool, size):
            block = self._obtain(pool, size)
        if block is None:
            self.release_cached()
            self.retries += 1
            block = self._obtain(pool, size)
        if block is None:
            raise OutOfMemory(size, self.allocated, self.reserved)
        return block

    def _obtain(self, pool: Pool, size: int) -> Block | None:
        """Ask the driver for a segment."""
        nbytes = self._segment_size(size)
        if self.reserved + nbytes > self.capacity:
            return None
        block = Block(pool, self.next_address, nbytes)
        self.next_address += nbytes
        self._reserve(nbytes, "segment_alloc", block.address)
        return block

    def _reserve(self, nbytes: int, action: str, address: int) -> None:
        self.reserved += nbytes
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        if self.on_segment is not None:
            self.on_segment(action, address, abs(nbytes))

    def _release(self, block: Block) -> None:
        block.pool.drop(block)
        self._reserve(-block.size, "segment_free", block.address)

    def _release_oversized(self, pool: Pool, size: int) -> bool:
        """With ``max_split``: release the one large block that is enough, or several."""
        if self.settings.max_split is None:
            return False
        target = max(size, self.max_split)
        at = bisect_left(pool.free, (target,))
        if at < len(pool.free):
            self._release(pool.free[at][2])
            return True
        released = 0
        while released < target and pool.free and pool.free[-1][0] >= self.max_split:
            released += pool.free[-1][0]
            self._release(pool.free[-1][2])
        return released >= target

    def _collect(self) -> None:
        """Release free segments that have waited longer than the average (torch's collector)."""
        threshold = self.settings.collect_above * self.capacity
        target, reclaimed = self.reserved - threshold, 0
        pool = self.pools[False]
        whole = [b for _, _, b in pool.free if b.before is None and b.after is None]
        age = sum(pool.calls - b.calls for b in whole)
        while reclaimed < target and whole:
            limit = age / len(whole)
            old = [b for b in whole if pool.calls - b.calls >= limit]
            for block in old:
                reclaimed += block.size
                age -= pool.calls - block.calls
                whole.remove(block)
                self._release(block)
            if not old:
                return

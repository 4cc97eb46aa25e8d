"""Expandable segments: one growing address range per pool, memory mapped in as it is needed.

``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True``. Pages are 2 MiB in the small pool and 20 MiB
in the large one; whole free pages can be given back from the middle of a range, so little is lost
to fragments. The rules are those of ``find_expandable_block``, ``map_block`` and ``unmap_block``
in torch's ``CUDACachingAllocator.cpp``.
"""

from __future__ import annotations

from bisect import bisect_left

from bench.predict.allocator import ROUND, SMALL_SEGMENT, Allocator
from bench.predict.blocks import Block, Pool

BOUNDLESS = 1 << 50
"""Address space of a range where no capacity is set; torch takes 9/8 of the device's memory."""


class Expandable(Allocator):
    """One device's allocator with expandable segments.

    >>> device = Expandable()
    >>> blocks = [device.malloc(15_000_000), device.malloc(15_000_000)]
    >>> device.reserved  # two pages of 20 MiB in one range: an ordinary segment is as large each
    41943040
    >>> device.free(blocks[0])
    >>> device.free(blocks[1])
    >>> device.malloc(30_000_000).size, device.reserved
    (30000128, 41943040)

    """

    def release_cached(self) -> None:
        """Give every wholly free page back to the driver."""
        for pool in (self.pools[False], self.pools[True]):
            for _, _, block in list(pool.free):
                self._unmap(block)

    def _take(self, pool: Pool, size: int) -> Block | None:
        """Return the best fit, where a piece counts with the range it can still grow into."""
        if self.settings.collect_above:
            pool.calls += 1
        at = bisect_left(pool.free, (size,))
        if at == len(pool.free):
            return None
        while at + 1 < len(pool.free):
            if _reach(pool.free[at + 1][2]) >= _reach(pool.free[at][2]):
                break
            at += 1
        return pool.free.pop(at)[2] if self._suits(size, pool.free[at][0]) else None

    def _splits(self, pool: Pool, size: int, rest: int) -> bool:
        return rest >= ROUND

    def _collect(self) -> None:
        """Do nothing: torch's collector leaves expandable segments alone."""

    def _release_oversized(self, pool: Pool, size: int) -> bool:
        return False

    def _page(self, pool: Pool) -> int:
        return SMALL_SEGMENT if pool.small else self.settings.large_segment

    def _obtain(self, pool: Pool, size: int) -> Block | None:
        """Map memory behind the first range with room, from a free piece before it if any."""
        block = self._find(pool, size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            following = block.after
            assert following is not None  # _find saw room for the whole
            if not self._map(following, min(size - block.size, following.size)):
                return None
            block = following
        pool.drop(block)
        return block

    def _find(self, pool: Pool, size: int) -> Block:
        for _, unmapped in pool.unmapped:
            before = unmapped.before
            block = before if before is not None and before.free else unmapped
            if _room(block, size):
                return block
        page = self._page(pool)
        span = BOUNDLESS if self.settings.capacity is None else self.capacity * 9 // 8
        address = -(-self.next_address // page) * page  # pages are counted from 0 in _unmap
        fresh = Block(pool, address, -(-max(span, size) // page) * page, mapped=False)
        self.next_address = address + fresh.size
        pool.put(fresh)
        return fresh

    def _map(self, block: Block, size: int) -> bool:
        """Put memory behind the first ``size`` bytes of an unmapped piece, in whole pages."""
        page, pool = self._page(block.pool), block.pool
        nbytes = -(-size // page) * page
        if self.reserved + nbytes > self.capacity:
            return False
        pool.drop(block)
        if nbytes < block.size:
            pool.put(block.cut(nbytes, mapped=False))
        block.mapped = True
        address = block.address
        pool.merge(block)
        pool.put(block)
        self._reserve(nbytes, "segment_map", address)
        return True

    def _unmap(self, block: Block) -> None:
        """Give back the whole pages of a free piece; its ends stay."""
        page, pool = self._page(block.pool), block.pool
        begin = -(-block.address // page) * page
        end = (block.address + block.size) // page * page
        if begin >= end:
            return
        pool.drop(block)
        head = block.cut(begin - block.address) if begin > block.address else None
        middle = block if head is None else head
        if head is not None:
            pool.put(block)
        if middle.address + middle.size > end:
            pool.put(middle.cut(end - begin))
        middle.mapped = False
        pool.merge(middle)
        pool.put(middle)
        self._reserve(begin - end, "segment_unmap", begin)
        if middle.before is None and middle.after is None:
            pool.drop(middle)  # the whole range is unused: the driver takes it back


def _reach(block: Block) -> int:
    """Return the bytes of a piece and of the unmapped range right behind it."""
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)


def _room(block: Block | None, size: int) -> bool:
    """Say whether the free and unmapped pieces from ``block`` on hold ``size`` bytes."""
    found = 0
    while found < size and block is not None and block.free:
        found += block.size
        block = block.after
    return found >= size

"""Pieces of an allocator's segments and the lists of the free ones."""

from __future__ import annotations

from bisect import bisect_left, insort


class Block:
    """A piece of a segment; its neighbours in the segment are ``before`` and ``after``."""

    __slots__ = ("address", "after", "asked", "before", "calls", "free", "mapped", "pool", "size")

    def __init__(self, pool: Pool, address: int, size: int, mapped: bool = True) -> None:
        """Make a free piece without neighbours."""
        self.pool, self.address, self.size, self.mapped = pool, address, size, mapped
        self.before: Block | None = None
        self.after: Block | None = None
        self.asked = self.calls = 0
        self.free = True

    def cut(self, size: int, mapped: bool = True) -> Block:
        """Shorten this piece to ``size`` and return the rest, which follows it."""
        rest = Block(self.pool, self.address + size, self.size - size, mapped)
        rest.before, rest.after, self.after = self, self.after, rest
        if rest.after is not None:
            rest.after.before = rest
        self.size = size
        return rest


class Pool:
    """The free pieces for small or for large requests."""

    __slots__ = ("calls", "free", "small", "unmapped")

    def __init__(self, small: bool) -> None:
        """Begin empty."""
        self.small, self.calls = small, 0
        self.free: list[tuple[int, int, Block]] = []
        """Sorted by size, then address."""
        self.unmapped: list[tuple[int, Block]] = []
        """Address ranges without memory behind them, by address (expandable segments)."""

    def put(self, block: Block) -> None:
        """Keep a free piece."""
        if block.mapped:
            block.calls = self.calls
            insort(self.free, (block.size, block.address, block))
        else:
            insort(self.unmapped, (block.address, block))

    def drop(self, block: Block) -> None:
        """Forget a piece that is handed out, merged away or released."""
        if block.mapped:
            del self.free[bisect_left(self.free, (block.size, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (block.address,))]

    def merge(self, block: Block) -> None:
        """Let ``block``, which is in no list, swallow its free neighbours of its kind."""
        before, after = block.before, block.after
        if before is not None and before.free and before.mapped == block.mapped:
            self.drop(before)
            block.address, block.before = before.address, before.before
            block.size += before.size
            if block.before is not None:
                block.before.after = block
        if after is not None and after.free and after.mapped == block.mapped:
            self.drop(after)
            block.size, block.after = block.size + after.size, after.after
            if block.after is not None:
                block.after.before = block

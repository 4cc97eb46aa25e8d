"""The kernel for GPUs: noise made in registers and added as the weights pass by.

A program is one warp, whose threads are the lanes of a block of the stream (see ``stream``). What
a few steps make is a *tile* of shape (ROWS, LANES): as many rows of 32 elements that lie side by
side, which the lanes read and write in one go. Seeds and places come as 32-bit words, so nothing
is compiled anew from step to step, or for a larger tensor.

The bits are those of ``reference``: every ``*`` and ``+`` is rounded once, as long as the launch
says ``enable_fp_fusion=False``. ``gpu`` launches it; this module imports triton, so it is itself
imported on first use.
"""
# mypy: disable-error-code="untyped-decorator"
# why: triton ships no types.

from __future__ import annotations

import triton
import triton.language as tl

from zo_core.noise import quantile, stream

LAWS = ("gaussian", "rademacher", "uniform")
GAUSSIAN = tl.constexpr(LAWS.index("gaussian"))
RADEMACHER = tl.constexpr(LAWS.index("rademacher"))
UNIFORM = tl.constexpr(LAWS.index("uniform"))

LANES = tl.constexpr(stream.LANES)
TERM_WORDS = tl.constexpr(3)
"""A term in memory: lower and upper word of the seed, bits of the float32 coefficient."""

BODY_ROWS = tl.constexpr(len(quantile.BODY))
TAIL_ROWS = tl.constexpr(len(quantile.TAIL))
TAIL_ROW = tl.constexpr(quantile.TAIL_ROW)
TAIL_SHIFT = tl.constexpr(32 - quantile.TAIL_BITS)
TAIL_UNIT = tl.constexpr(2.0**-quantile.TAIL_BITS)
TAIL_SEED = tl.constexpr(stream.TAIL)
UNIFORM_UNIT = tl.constexpr(2.0**-24)

# ------------------------------------------------------------------------------------- the words


@triton.jit
def _long(low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """Return the int64 of two 32-bit words."""
    return (high.to(tl.int64) << 32) | low.to(tl.uint32, bitcast=True).to(tl.int64)


@triton.jit
def _philox(place: tl.tensor, key: tl.tensor, seed: tl.tensor) -> tl.tensor:
    """Return the four words at counter (``place``; ``key``), all three int64."""
    low, high = place.to(tl.uint32), (place >> 32).to(tl.uint32)
    everywhere = low * 0  # makes a scalar one of many, for which old tritons ask
    key_low, key_high = key.to(tl.uint32) + everywhere, (key >> 32).to(tl.uint32) + everywhere
    return tl.philox(seed, low, high, key_low, key_high)


@triton.jit
def _rotated(word: tl.tensor, by: tl.constexpr) -> tl.tensor:
    return (word << by) | (word >> (32 - by))


@triton.jit
def _next(s0: tl.tensor, s1: tl.tensor, s2: tl.tensor, s3: tl.tensor) -> tl.tensor:
    """Return the word of xoshiro128++, and the state after it."""
    word = _rotated(s0 + s3, 7) + s0
    s2 ^= s0
    s3 ^= s1
    return word, s0 ^ s3, s1 ^ s2, s2 ^ (s1 << 9), _rotated(s3, 11)


@triton.jit
def _start(
    lane: tl.tensor, key: tl.tensor, seed: tl.tensor, steps: tl.tensor, LAW: tl.constexpr
) -> tl.tensor:
    """Return the state of each lane (int64, counted from the stream's first) after ``steps``."""
    if LAW == UNIFORM:
        seed = ~seed
    s0, s1, s2, s3 = _philox(lane, key, seed)
    for _ in range(steps):
        _, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
    return s0, s1, s2, s3


# ------------------------------------------------------------------------------- laws: words to z


@triton.jit
def _float(bits: tl.tensor) -> tl.tensor:
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _polynomial(table: tl.tensor, row: tl.tensor, v: tl.tensor, ROWS: tl.constexpr) -> tl.tensor:
    """Evaluate row ``row``; the rows of one power lie side by side, in a cache line or two."""
    z = tl.load(table + row + 3 * ROWS) * v + tl.load(table + row + 2 * ROWS)
    z = z * v + tl.load(table + row + ROWS)
    return z * v + tl.load(table + row)


@triton.jit
def _tail(place: tl.tensor, key: tl.tensor, seed: tl.tensor, quantiles: tl.tensor) -> tl.tensor:
    """Return the magnitudes that the elements at ``place`` have in the outermost cell."""
    word, _, _, _ = _philox(place, key, seed ^ TAIL_SEED)
    v = (((word >> TAIL_SHIFT) << 1) | 1).to(tl.float32) * TAIL_UNIT
    row = (v.to(tl.int32, bitcast=True) >> 22) - TAIL_ROW
    return _polynomial(quantiles + 4 * BODY_ROWS, row, v, TAIL_ROWS)


@triton.jit
def _gaussian(
    halves: tl.tensor, place: tl.tensor, key: tl.tensor, seed: tl.tensor, quantiles: tl.tensor
) -> tl.tensor:
    """Return normal numbers from the upper 16 bits of each of ``halves``."""
    k = (halves >> 15) & 0xFFFE
    v = (k | 1).to(tl.float32)
    row = (v.to(tl.int32, bitcast=True) >> 22) & (BODY_ROWS - 1)
    z = _polynomial(quantiles, row, v, BODY_ROWS)
    if tl.min(k.to(tl.int32)) == 0:  # one element in 32768
        z = tl.where(k == 0, _tail(place, key, seed, quantiles), z)
    return _float(z.to(tl.uint32, bitcast=True) ^ (halves & 0x80000000))


@triton.jit
def _tile(
    place: tl.tensor,  # of each element in the tensor, (ROWS, LANES) int64
    key: tl.tensor,
    seed: tl.tensor,
    s0: tl.tensor,  # state, (LANES,) uint32
    s1: tl.tensor,
    s2: tl.tensor,
    s3: tl.tensor,
    quantiles: tl.tensor,
    LAW: tl.constexpr,
    ROWS: tl.constexpr,
) -> tl.tensor:
    """Return the next tile of noise, float32, and the state after it.

    Which word a row is made of is known when it compiles, as a thread holds all rows of its lane:
    no ``where`` is left in the machine code.
    """
    row = tl.arange(0, ROWS).to(tl.uint32)[:, None]
    word, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
    words = word[None, :]
    if LAW == RADEMACHER:  # a row for each bit of a word
        z = _float(((words >> row) << 31) | 0x3F800000)
    else:  # as many rows for each of four steps
        for step in tl.static_range(1, 4):
            word, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
            words = tl.where(row < step * (ROWS // 4), words, word[None, :])
        if LAW == GAUSSIAN:
            halves = words << tl.where(row % 2 == 0, 16, 0).to(tl.uint32)
            z = _gaussian(halves, place, key, seed, quantiles)
        else:
            z = (words >> 8).to(tl.float32) * UNIFORM_UNIT
    return z, s0, s1, s2, s3


# ------------------------------------------------------------------------------ z to the weights


@triton.jit
def _read(pointers: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Return weights as float32; bfloat16 ones come as int16."""
    x = tl.load(pointers, mask, other=0)
    if x.dtype == tl.int16:
        return _float(x.to(tl.uint32) << 16)
    else:
        return x.to(tl.float32)


@triton.jit
def _write(pointers: tl.tensor, x: tl.tensor, mask: tl.tensor, fixed: tl.tensor) -> tl.tensor:
    """Round float32 numbers to nearest, ties to even, and store them; see ``reference.write``.

    Where ``fixed``, x is a number of the dtype, and is stored as it is.
    """
    if pointers.dtype.element_ty == tl.int16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # Below the normal range it is zero. A GPU's own NaN has all bits set, and would overflow.
        rounded = tl.where((bits & 0x7F800000) == 0, (bits >> 31) << 15, rounded)
        rounded = tl.where(fixed, bits >> 16, rounded)
        tl.store(pointers, tl.where(x == x, rounded, 0x7FC0).to(tl.int16), mask)
    else:
        tl.store(pointers, x.to(pointers.dtype.element_ty), mask)


@triton.jit(do_not_specialize=list(range(14)))
def write(
    source: tl.tensor,  # pointers to weights of one dtype; bfloat16 as int16
    out: tl.tensor,  # may be source
    other: tl.tensor,  # written where BOTH
    terms: tl.tensor,  # (count_terms, 3) int32, see TERM_WORDS
    quantiles: tl.tensor,  # BODY and TAIL, each transposed, float32
    count_terms: tl.tensor,
    threshold: tl.tensor,  # bits of a float32, heeded where SMALL
    skip: tl.tensor,  # elements of the first block that come before source
    block_low: tl.tensor,  # the block of the stream that source starts in, 64 bits
    block_high: tl.tensor,
    count_low: tl.tensor,  # elements of source, 64 bits
    count_high: tl.tensor,
    key_low: tl.tensor,  # of the tensor, 64 bits
    key_high: tl.tensor,
    LAW: tl.constexpr,
    BOTH: tl.constexpr,
    SMALL: tl.constexpr,  # keep what is larger than threshold
    SINGLE: tl.constexpr,  # there is one term
    ROWS: tl.constexpr,  # of a tile
    GROUP: tl.constexpr,  # steps that a tile takes
    TILES: tl.constexpr,  # in a block
    SPAN: tl.constexpr,  # tiles that a program writes; TILES / SPAN programs share a block
) -> None:
    """Write ``source`` plus, and with BOTH minus, the sum of the terms; see ``gpu.write``.

    The states of one term stay in registers. There is no room for those of many, so each tile
    begins them anew: its lanes are seeded, and run through the steps before it.
    """
    SIZE: tl.constexpr = ROWS * LANES  # elements of a tile
    UNIT: tl.constexpr = SIZE * TILES  # elements of a block
    number = (tl.program_id(0) // (TILES // SPAN)).to(tl.int64)
    part = tl.program_id(0) % (TILES // SPAN)
    begin = number * UNIT - skip  # where in source the block begins: may be negative, or huge
    low = tl.maximum(-begin, 0).to(tl.int32)
    high = tl.minimum(_long(count_low, count_high) - begin, UNIT).to(tl.int32)
    first_tile = tl.maximum(low // SIZE, part * SPAN)
    end_tile = tl.minimum((high + SIZE - 1) // SIZE, part * SPAN + SPAN)

    block = _long(block_low, block_high) + number
    key = _long(key_low, key_high)
    lane = tl.arange(0, LANES)
    lanes = block * LANES + lane
    elements = tl.arange(0, ROWS)[:, None] * LANES + lane[None, :]
    if SINGLE:
        seed = _long(tl.load(terms), tl.load(terms + 1))
        c = _float(tl.load(terms + 2))
        s0, s1, s2, s3 = _start(lanes, key, seed, first_tile * GROUP, LAW)
    for tile in range(first_tile, end_tile):
        at = elements + tile * SIZE
        place = block * UNIT + at
        if SINGLE:
            z, s0, s1, s2, s3 = _tile(place, key, seed, s0, s1, s2, s3, quantiles, LAW, ROWS)
            change = z * c
        else:
            # x + (-0.0) is x to the bit, whatever x is.
            change = _float(tl.full([ROWS, LANES], 0x80000000, tl.uint32))
            for term in range(count_terms):
                words = terms + term * TERM_WORDS
                seed = _long(tl.load(words), tl.load(words + 1))
                s0, s1, s2, s3 = _start(lanes, key, seed, tile * GROUP, LAW)
                z, s0, s1, s2, s3 = _tile(place, key, seed, s0, s1, s2, s3, quantiles, LAW, ROWS)
                change += z * _float(tl.load(words + 2))
        mask = (at >= low) & (at < high)
        old = _read(source + begin + at, mask)
        plus = old + change
        minus = old - change
        fixed = (tl.abs(old) > _float(threshold)) & SMALL
        _write(out + begin + at, tl.where(fixed, old, plus), mask, fixed)
        if BOTH:
            _write(other + begin + at, tl.where(fixed, old, minus), mask, fixed)

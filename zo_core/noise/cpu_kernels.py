"""The loops of ``reference`` for numba: same operations, same order, same bits.

Whole units go through ``vector``, in one pass over the weights where there is one term. What is
left (ends of a tensor, several terms, float64) is summed up in a buffer of one unit first.

Each loop does one thing over lanes, so that LLVM vectorises it. LLVM contracts and reorders
nothing unless it is told to (``fastmath``), and it is not: every ``+`` and ``*`` rounds once.

Importing this module imports numba, an optional dependency; only ``cpu`` does so, on first use.
Integers carry their width in their type, because numba would widen a plain one to 64 bits. Numba
freezes constants and vector code into its disk cache and watches this file alone: touch it when
you change ``vector``, ``quantile``, ``stream`` or ``philox``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from zo_core.noise import philox, quantile
from zo_core.noise.stream import LANES, STEPS, TAIL
from zo_core.noise.vector import UNITS, halves, sums, unit, words

__all__ = [
    "LAWS",
    "compiled_for_team",
    "halves",
    "jit",
    "team_of",
    "write",
    "write_float64",
    "write_rounded",
    "write_rows",
]

P = ParamSpec("P")
R = TypeVar("R")
Array = np.ndarray[Any, Any]

GAUSSIAN, RADEMACHER, UNIFORM = 0, 1, 2
LAWS = {"gaussian": GAUSSIAN, "rademacher": RADEMACHER, "uniform": UNIFORM}


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` on its first call, and keep the machine code on disk where possible."""
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable directory for the cache
        compiled = numba.njit(nogil=True)(function)
    return cast(Callable[P, R], compiled)


_u32, _u64, _i32, _f32 = np.uint32, np.uint64, np.int32, np.float32
_UNIT, _ROW = UNITS["gaussian"], UNITS["rademacher"]  # that of uniform is a row as well

_M0, _M1 = _u64(philox.M0), _u64(philox.M1)
_W0, _W1 = _u64(philox.W0), _u64(philox.W1)
_MASK, _S32 = _u64(philox.MASK), _u64(32)
_ROUNDS = philox.ROUNDS


@jit
def _philox(words: Array, place: np.uint64, key: np.uint64, seed: np.uint64) -> None:
    """Fill ``words``, uint32 of shape (4, n), for counters ``place .. place + n - 1``.

    The state lives in 64-bit lanes of which the upper half may hold rubbish: only the operands of
    a product and the results are cut to 32 bits, which costs no instruction.
    """
    for i in range(words.shape[1]):
        c0 = place + _u64(i)
        c1, c2, c3 = c0 >> _S32, key, key >> _S32
        k0, k1 = seed, seed >> _S32
        for _ in range(_ROUNDS):
            p0 = (c0 & _MASK) * _M0
            p1 = (c2 & _MASK) * _M1
            c0, c1, c2, c3 = (p1 >> _S32) ^ c1 ^ k0, p1, (p0 >> _S32) ^ c3 ^ k1, p0
            k0 += _W0
            k1 += _W1
        words[0, i] = _u32(c0)
        words[1, i] = _u32(c1)
        words[2, i] = _u32(c2)
        words[3, i] = _u32(c3)


_U1, _U7, _U9, _U11, _U21, _U25 = (_u32(n) for n in (1, 7, 9, 11, 21, 25))


@jit
def _step(state: Array, out: Array) -> None:
    """Step xoshiro128++ of every lane; ``state`` (4, LANES) and ``out`` (LANES,), uint32."""
    for i in range(LANES):
        s0, s1, s2, s3 = state[0, i], state[1, i], state[2, i], state[3, i]
        total = _u32(s0 + s3)
        out[i] = _u32(_u32(_u32(total << _U7) | _u32(total >> _U25)) + s0)
        s2 ^= s0
        s3 ^= s1
        state[0, i] = s0 ^ s3
        state[1, i] = s1 ^ s2
        state[2, i] = s2 ^ _u32(s1 << _U9)
        state[3, i] = _u32(s3 << _U11) | _u32(s3 >> _U21)


_PER_BLOCK = STEPS  # units of rademacher in a block; of the others there is one


@jit
def _begin(
    state: Array, law: int, at: int, again: bool, key: np.uint64, seed: np.uint64, out: Array
) -> None:
    """Bring ``state`` to the start of unit ``at``; it is there already where units follow."""
    if law == GAUSSIAN:
        _philox(state, _u64(at) * _u64(LANES), key, seed)
    elif law == UNIFORM:
        _philox(state, _u64(at) * _u64(LANES), key, ~seed)
    elif again or at % _PER_BLOCK == 0:
        _philox(state, _u64(at // _PER_BLOCK) * _u64(LANES), key, seed)
        for _ in range(at % _PER_BLOCK):
            _step(state, out)


# ------------------------------------------------------------------------------ past 4.17 sigma

_TAIL = np.array(quantile.TAIL, dtype=np.float32)
_TAIL_ROW, _TAIL_SHIFT = _i32(quantile.TAIL_ROW), _u32(32 - quantile.TAIL_BITS)
_TAIL_UNIT, _TAIL_SEED = _f32(2.0**-quantile.TAIL_BITS), _u64(TAIL)
_U15, _U16, _U31, _I22 = _u32(15), _u32(16), _u32(31), _i32(22)
_QUANTILES, _UPPER = _u32(0x7FFF), _u32(0x7FFF0000)


@jit
def _tail(place: np.uint64, key: np.uint64, seed: np.uint64, words: Array) -> Any:
    """Return the magnitude of the outermost element at ``place``; ``words`` is scratch, (4, 1)."""
    _philox(words, place, key, seed ^ _TAIL_SEED)
    x = _u32(_u32(words[0, 0] >> _TAIL_SHIFT) << _U1) | _U1
    v = _f32(_f32(_i32(x)) * _TAIL_UNIT)
    row = _i32(_i32(v.view(np.int32) >> _I22) - _TAIL_ROW)
    z = _TAIL[row, 3]
    z = _f32(_f32(z * v) + _TAIL[row, 2])
    z = _f32(_f32(z * v) + _TAIL[row, 1])
    return _f32(_f32(z * v) + _TAIL[row, 0])


@jit
def _tails(
    at: int, key: np.uint64, seed: np.uint64, state: Array, where: Array, what: Array
) -> int:
    """List the outermost elements of Gaussian unit ``at``: places within it, and values."""
    drawn, one = np.empty(STEPS * LANES, np.uint32), np.empty((4, 1), np.uint32)
    _philox(state, _u64(at) * _u64(LANES), key, seed)
    _words(state, drawn)
    count = 0
    for row in range(0, STEPS * LANES, LANES):
        found = _u32(0)
        for i in range(row, row + LANES):  # n - 1 has bit 31 set where n is 0, and only there
            found |= _u32((drawn[i] & _QUANTILES) - _U1) | _u32((drawn[i] & _UPPER) - _U1)
        if found >> _U31 == 0:
            continue
        for half in range(2):
            for i in range(row, row + LANES):
                if drawn[i] & (_UPPER if half else _QUANTILES) == 0:
                    place = 2 * row + half * LANES + i - row
                    z = _tail(_u64(at) * _u64(_UNIT) + _u64(place), key, seed, one)
                    negative = drawn[i] >> (_U31 if half else _U15) & _U1
                    where[count], what[count] = place, -z if negative else z
                    count += 1
    return count


# ------------------------------------------------------------------------------------- the buffer

_gaussian, _signs, _uniform = (unit(law) for law in ("gaussian", "rademacher", "uniform"))
_sums, _words = sums(), words()
_ZERO, _ONE = _f32(0.0), _f32(1.0)


@jit
def _scratch(terms: int) -> Any:
    """Return states, a row of words, a unit of sums, and room for the elements of a tail."""
    return (
        np.empty((terms, 4, LANES), np.uint32),
        np.empty(LANES, np.uint32),
        np.empty(_UNIT, np.float32),
        np.empty(_UNIT, np.int64),
        np.empty(_UNIT, np.float32),
    )


@jit
def _add_unit(
    total: Array,
    law: int,
    at: int,
    c: Any,
    key: np.uint64,
    seed: np.uint64,
    state: Array,
    where: Array,
    what: Array,
) -> None:
    """Add ``c`` times unit ``at`` to ``total``, float32; ``state`` stands at its start."""
    if law == GAUSSIAN:
        if _gaussian(state, total, (total,), 0, c, None) == 1:
            for k in range(_tails(at, key, seed, state, where, what)):
                total[where[k]] += c * what[k]
    elif law == RADEMACHER:
        _signs(state, total, (total,), 0, c, None)
    else:
        _uniform(state, total, (total,), 0, c, None)


@jit
def _sum(
    law: int, at: int, again: bool, key: np.uint64, seeds: Array, coefficients: Array, s: Any
) -> None:
    """Sum the terms over unit ``at`` into the buffer of scratch ``s``."""
    states, words, total, where, what = s
    total[:] = -_ZERO  # x + (-0.0) is x to the bit, whatever x is
    for t in range(seeds.size):
        _begin(states[t], law, at, again, key, seeds[t], words)
        _add_unit(total, law, at, coefficients[t], key, seeds[t], states[t], where, what)


# --------------------------------------------------------------------- from and to float32, scalar

_U13 = _u32(13)
_SIGN, _ABSOLUTE, _INFINITY = _u32(0x80000000), _u32(0x7FFFFFFF), _u32(0x7F800000)
_BF16_NAN, _BF16_TIE = _u32(0x7FC0), _u32(0x7FFF)


@jit
def _from_bfloat16(half: Any) -> Any:
    return _u32(_u32(half) << _U16).view(np.float32)


@jit
def _to_bfloat16(value: Any) -> Any:
    b = _f32(value).view(np.uint32)
    rounded = _u32(b + _BF16_TIE + ((b >> _U16) & _U1)) >> _U16
    return _BF16_NAN if (b & _ABSOLUTE) > _INFINITY else rounded


# float16 has 5 bits of exponent, biased by 15, and 10 of fraction; float32 has 8, 127, and 23.
_F16_SIGN, _F16_ABSOLUTE, _F16_INFINITY = _u32(0x8000), _u32(0x7FFF), _u32(0x7C00)
_F16_NAN, _F16_TIE, _F16_NORMAL = _u32(0x7E00), _u32(0xFFF), _u32(0x400)
_REBIAS, _REBIAS_INFINITY = _u32((127 - 15) << 23), _u32((255 - 31) << 23)
_F32_NORMAL, _F32_OVERFLOW = _u32((127 - 14) << 23), _u32((127 + 16) << 23)
_STEP, _STEPS = _f32(2.0**-24), _f32(2.0**24)  # between subnormals, and how many in one
_INTEGERS, _INTEGER_BITS = _f32(2.0**23), _u32((127 + 23) << 23)


@jit
def _from_float16(half: Any) -> Any:
    h = _u32(half)
    a = _u32(h & _F16_ABSOLUTE)
    small = _f32(_f32(_i32(a)) * _STEP).view(np.uint32)
    normal = _u32((a << _U13) + (_REBIAS_INFINITY if a >= _F16_INFINITY else _REBIAS))
    out = small if a < _F16_NORMAL else normal
    return _u32(out | _u32(_u32(h & _F16_SIGN) << _U16)).view(np.float32)


@jit
def _to_float16(value: Any) -> Any:
    b = _f32(value).view(np.uint32)
    a = _u32(b & _ABSOLUTE)
    # From 2^23 on floats are the integers, so this sum rounds to whole steps, ties to even.
    steps = _f32(_u32(a).view(np.float32) * _STEPS + _INTEGERS).view(np.uint32)
    small = _u32(steps - _INTEGER_BITS)
    normal = _u32(_u32(a - _REBIAS + _F16_TIE + ((a >> _U13) & _U1)) >> _U13)
    out = normal if a >= _F32_NORMAL else small
    out = _F16_INFINITY if a >= _F32_OVERFLOW else out
    out = _F16_NAN if a > _INFINITY else out
    return out | _u32(_u32(b & _SIGN) >> _U16)


def _get(array: Array, i: int) -> Any:
    """Return element ``i`` as float32; see ``vector.DTYPES`` for what an array's type means."""


def _put(array: Array, i: int, value: Any) -> None:
    """Round ``value`` to the dtype that the array's type means, and write it."""


@overload(_get, strict=False)
def _get_by_dtype(array: Any, i: Any) -> Any:
    return {
        types.float32: lambda array, i: array[i],
        types.float64: lambda array, i: array[i],
        types.uint16: lambda array, i: _from_bfloat16(array[i]),
        types.int16: lambda array, i: _from_float16(np.uint16(array[i])),
    }[array.dtype]


@overload(_put, strict=False)
def _put_by_dtype(array: Any, i: Any, value: Any) -> Any:
    def itself(array: Any, i: Any, value: Any) -> None:
        array[i] = value

    def bfloat16(array: Any, i: Any, value: Any) -> None:
        b = _f32(value).view(np.uint32)  # zero below the normal range
        array[i] = np.uint16(_to_bfloat16(value) if b & _INFINITY else (b & _SIGN) >> _U16)

    def float16(array: Any, i: Any, value: Any) -> None:
        array[i] = np.int16(_to_float16(value))

    return {
        types.float32: itself,
        types.float64: itself,
        types.uint16: bfloat16,
        types.int16: float16,
    }[array.dtype]


def _fixed(old: Any, threshold: Any) -> bool:
    """Whether a weight is too large to be moved."""
    return threshold is not None and not abs(old) <= threshold


@overload(_fixed, strict=False)
def _fixed_by_type(old: Any, threshold: Any) -> Any:
    if threshold is types.none:
        return lambda old, threshold: False
    return lambda old, threshold: not abs(old) <= threshold


# ------------------------------------------------------------------------------- the one entrance


@jit
def _put_both(old: Any, change: Any, outs: Any, i: int, threshold: Any) -> None:
    """Write both sides of element ``i``, or as many as there are."""
    fixed = _fixed(old, threshold)
    for side in range(len(outs)):
        moved = old - change if side else old + change
        _put(outs[side], i, old if fixed else moved)


@jit
def _apply(source: Array, outs: Any, change: Array, threshold: Any) -> None:
    """Do as ``write`` with sums, float32; all of shape (n,), ``change`` of as many or more."""
    for i in range(_sums(change, source, outs, 0, _ONE, threshold), source.size):
        _put_both(_get(source, i), change[i], outs, i, threshold)


@jit
def _part(outs: Any, a: int, b: int) -> Any:
    """Cut every array of ``outs``; a loop can't make a tuple."""
    return (outs[0][a:b],) if len(outs) == 1 else (outs[0][a:b], outs[-1][a:b])


@jit
def write(
    source: Array,
    outs: Any,
    threshold: Any,
    law: int,
    first: int,
    key: np.uint64,
    seeds: Array,
    coefficients: Array,
) -> None:
    """Write the sum of the terms, formed in float32, added to ``source``; see ``vector.unit``.

    ``source`` and the one or two ``outs`` have shape (n,) and one dtype; ``law`` is one of LAWS,
    ``first`` the place of element 0, ``seeds`` uint64 and ``coefficients`` float32, (k,) both.
    Compiled anew for one or two outs, with and without a threshold: those are types.
    """
    s = _scratch(seeds.size)
    states, words, total, where, what = s
    state = states[0] if seeds.size else np.empty((4, LANES), np.uint32)
    size = _UNIT if law == GAUSSIAN else _ROW
    begin = first // size
    for at in range(begin, (first + source.size - 1) // size + 1):
        low = at * size - first
        a, b = max(0, low), min(source.size, low + size)
        if seeds.size != 1 or law == UNIFORM or b - a < size:
            _sum(law, at, at == begin, key, seeds, coefficients, s)
            _apply(source[a:b], _part(outs, a, b), total[a - low :], threshold)
            continue
        _begin(state, law, at, at == begin, key, seeds[0], words)
        if law == RADEMACHER:
            _signs(state, source, outs, a, coefficients[0], threshold)
        elif _gaussian(state, source, outs, a, coefficients[0], threshold) == 1:
            # The outermost elements were left as they are.
            for k in range(_tails(at, key, seeds[0], state, where, what)):
                i, change = a + where[k], coefficients[0] * what[k]
                _put_both(_get(outs[0], i), change, outs, i, threshold)


def _array_at_(typing_context: Any, like: Any, address: Any, count: Any) -> Any:
    """Return ``count`` elements from ``address`` on as an array of the type of ``like``."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        made = context.make_array(signature.return_type)(context, builder)
        item = context.get_constant(types.intp, context.get_abi_sizeof(made.data.type.pointee))
        context.populate_array(
            made,
            data=builder.inttoptr(args[1], made.data.type),
            shape=(args[2],),
            strides=(item,),
            itemsize=item,
            meminfo=None,
        )
        return made._getvalue()

    return like(like, address, count), emit


_array_at: Any = intrinsic(_array_at_)
_carray: Any = vars(numba)["carray"]  # it is not in numba's list of names


def _counted_(typing_context: Any, numbers: Any) -> Any:
    """Return the first of numbers, uint64, and raise it by one: no other thread gets it."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.uint64(numbers), emit


_counted: Any = intrinsic(_counted_)


def _sides(like: Array, row: Array, two: Any) -> Any:
    """Return the one or two arrays that a row is written to."""


@overload(_sides, strict=False)
def _sides_by_type(like: Any, row: Any, two: Any) -> Any:
    if two is types.none:
        return lambda like, row, two: (_array_at(like, row[1], np.int64(row[3])),)
    return lambda like, row, two: (
        _array_at(like, row[1], np.int64(row[3])),
        _array_at(like, row[2], np.int64(row[3])),
    )


def _bound(row: Array, bounded: Any) -> Any:
    """Return the threshold of a row, or None."""


@overload(_bound, strict=False)
def _bound_by_type(row: Any, bounded: Any) -> Any:
    if bounded is types.none:
        return lambda row, bounded: None
    return lambda row, bounded: _u32(row[6]).view(np.float32)


HEAD, ROW = 6, 7
"""Numbers of a job's head, and of a row of it."""


@jit
def write_rows(job: Array, like: Array, two: Any, bounded: Any) -> None:
    """Do as ``write`` for many arrays of the dtype of ``like``: a row each, until none is left.

    Any number of threads may do so at the same time; each row is done by one of them. ``job``,
    uint64, begins with a head: how many rows are taken, and done, how many numbers and rows there
    are, the law, and the number of terms. The rows follow: where the source and the outs begin
    (the second is written where ``two`` is not None), how many elements there are, the place of
    the first, the tensor's key, and the bits of the threshold (in force where ``bounded`` is not
    None). Then come the seeds, and the bits of the coefficients.
    """
    count, law, terms = np.int64(job[3]), int(np.int64(job[4])), np.int64(job[5])
    end = HEAD + count * ROW
    seeds, coefficients = job[end : end + terms], np.empty(terms, np.float32)
    for t in range(terms):
        coefficients[t] = _u32(job[end + terms + t]).view(np.float32)
    while True:
        taken = np.int64(_counted(job))
        if taken >= count:
            return
        row = job[HEAD + taken * ROW : HEAD + (taken + 1) * ROW]
        source = _array_at(like, row[0], np.int64(row[3]))
        outs, bound = _sides(like, row, two), _bound(row, bounded)
        first, key = int(np.int64(row[4])), row[5]
        write(source, outs, bound, law, first, key, seeds, coefficients)
        _counted(job[1:])


@functools.cache
def team_of(kind: type, two: bool, bounded: bool) -> Any:
    """Return ``write_rows`` as a C function of the address of a job, for ``team``.

    ``kind`` is numpy's type of the arrays, as in ``vector.DTYPES``. It can't raise: numba prints
    what went wrong and returns, so the caller has to look whether all rows are done.
    """
    some, other = (True if two else None), (True if bounded else None)

    def work(job: Any) -> None:
        length = _carray(job, (HEAD,), np.uint64)[2]
        write_rows(_carray(job, (length,), np.uint64), _carray(job, (0,), kind), some, other)

    return compiled_for_team(work)


def compiled_for_team(work: Callable[[Any], None]) -> Any:
    """Return ``void work(void *)`` as a C function; it is kept on disk as ``jit`` does."""
    try:
        return numba.cfunc(types.void(types.voidptr), cache=True)(work)
    except RuntimeError:  # as for jit
        return numba.cfunc(types.void(types.voidptr))(work)


@jit
def write_float64(
    source: Array,
    outs: Any,
    threshold: Any,
    law: int,
    first: int,
    key: np.uint64,
    seeds: Array,
    coefficients: Array,
) -> None:
    """Do as ``write`` for float64 weights and coefficients, with sums formed in float64."""
    s = _scratch(seeds.size)
    states, words, z, where, what = s
    size = _UNIT if law == GAUSSIAN else _ROW
    total = np.empty(size, np.float64)
    begin = first // size
    for at in range(begin, (first + source.size - 1) // size + 1):
        total[:] = -0.0
        for t in range(seeds.size):
            _begin(states[t], law, at, at == begin, key, seeds[t], words)
            z[:] = -_ZERO
            _add_unit(z, law, at, _ONE, key, seeds[t], states[t], where, what)
            for i in range(size):
                total[i] += coefficients[t] * z[i]
        low = at * size - first
        for i in range(max(0, low), min(source.size, low + size)):
            _put_both(source[i], total[i - low], outs, i, threshold)


# ---------------------------------------------------------------------------- stochastic rounding


@jit
def _rounded_bfloat16(x: Any, chance: Any) -> Any:
    size = abs(x)
    near = _to_bfloat16(size)
    low = _u32(near - _U1) if _from_bfloat16(near) > size else _u32(near)
    step = _f32(_from_bfloat16(low + _U1) - _from_bfloat16(low))
    up = _f32(size - _from_bfloat16(low)) > _f32(chance * step)
    sign = _u32(_u32(_f32(x).view(np.uint32) & _SIGN) >> _U16)
    return _u32(low + _U1 if up else low) | sign


@jit
def _rounded_float16(x: Any, chance: Any) -> Any:
    size = abs(x)
    near = _to_float16(size)
    low = _u32(near - _U1) if _from_float16(near) > size else _u32(near)
    step = _f32(_from_float16(low + _U1) - _from_float16(low))
    up = _f32(size - _from_float16(low)) > _f32(chance * step)
    sign = _u32(_u32(_f32(x).view(np.uint32) & _SIGN) >> _U16)
    return _u32(low + _U1 if up else low) | sign


def _put_rounded(array: Array, i: int, x: Any, chance: Any) -> None:
    """Write ``x`` to a 16-bit array, rounded up where it stands above ``chance`` of a step."""


@overload(_put_rounded, strict=False)
def _put_rounded_by_dtype(array: Any, i: Any, x: Any, chance: Any) -> Any:
    def bfloat16(array: Any, i: Any, x: Any, chance: Any) -> None:
        array[i] = np.uint16(_rounded_bfloat16(x, chance))

    def float16(array: Any, i: Any, x: Any, chance: Any) -> None:
        array[i] = np.int16(_rounded_float16(x, chance))

    return {types.uint16: bfloat16, types.int16: float16}[array.dtype]


@jit
def write_rounded(
    weights: Array,
    rounding: np.uint64,
    law: int,
    first: int,
    key: np.uint64,
    seeds: Array,
    coefficients: Array,
) -> None:
    """Add the sum of the terms to 16-bit ``weights`` in place, rounded by the bits of a seed."""
    s = _scratch(seeds.size)
    total = s[2]
    chances, state = np.empty(_UNIT, np.float32), np.empty((4, LANES), np.uint32)
    size = _UNIT if law == GAUSSIAN else _ROW
    rows = size // _ROW
    begin = first // size
    for at in range(begin, (first + weights.size - 1) // size + 1):
        _sum(law, at, at == begin, key, seeds, coefficients, s)
        chances[:] = -_ZERO
        for k in range(rows):
            part = chances[k * _ROW : (k + 1) * _ROW]
            _begin(state, UNIFORM, at * rows + k, True, key, rounding, s[1])
            _uniform(state, part, (part,), 0, _ONE, None)
        low = at * size - first
        for i in range(max(0, low), min(weights.size, low + size)):
            _put_rounded(weights, i, _f32(_get(weights, i) + total[i - low]), chances[i - low])

"""The loops of ``reference`` for numba: same operations, same order, same bits.

Each loop does one thing over lanes, so that LLVM vectorises it. LLVM contracts and reorders
nothing unless it is told to (``fastmath``), and it is not: every ``* + - sqrt`` below rounds once.

Importing this module imports numba, an optional dependency; only ``cpu`` does so, on first use.
Integers carry their width in their type, because numba would widen a plain one to 64 bits. Numba
freezes constants into its disk cache and watches this file alone: touch it when you change one in
``philox`` or ``reference``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from zo_core.noise import reference as ref
from zo_core.noise.philox import LANES, WORDS

P = ParamSpec("P")
R = TypeVar("R")
Array = np.ndarray[Any, Any]

UNIT = 2048
"""Elements per sweep: every array of a sweep stays in the first-level cache."""

GAUSSIAN, RADEMACHER, UNIFORM = 0, 1, 2
LAWS = {"gaussian": GAUSSIAN, "rademacher": RADEMACHER, "uniform": UNIFORM}


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` on its first call, and keep the machine code on disk where possible.

    Without numba it stays plain Python, so that this file can be read by any tool; by name and
    not by ``import``, because numba may be absent and is untyped: the types are put back here.
    """
    try:
        numba = importlib.import_module("numba")
    except ImportError:
        return function
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable directory for the cache
        compiled = numba.njit(nogil=True)(function)
    return cast(Callable[P, R], compiled)


_u32, _u64, _i32, _f32 = np.uint32, np.uint64, np.int32, np.float32
_BLOCKS = UNIT // WORDS  # of Gaussian words in a unit
_WIDTH = _BLOCKS * LANES  # lanes in a Gaussian unit
_ROWS = UNIT // WORDS  # of Rademacher bits in a unit
_BITS = 32

_M0, _M1 = _u64(0xD2511F53), _u64(0xCD9E8D57)
_W0, _W1 = _u64(0x9E3779B9), _u64(0xBB67AE85)
_MASK, _S32 = _u64(0xFFFFFFFF), _u64(32)


@jit
def _philox(words: Array, lane: np.uint64, key: np.uint64, seed: np.uint64) -> None:
    """Fill ``words``, uint32 of shape (4, n), with lanes ``lane .. lane + n - 1``.

    The state lives in 64-bit lanes of which the upper half may hold rubbish: only the operands of
    a product and the results are cut to 32 bits, which costs no instruction.
    """
    for i in range(words.shape[1]):
        c0 = lane + _u64(i)
        c1, c2, c3 = c0 >> _S32, key, key >> _S32
        k0, k1 = seed, seed >> _S32
        for _ in range(10):
            p0 = (c0 & _MASK) * _M0
            p1 = (c2 & _MASK) * _M1
            c0, c1, c2, c3 = (p1 >> _S32) ^ c1 ^ k0, p1, (p0 >> _S32) ^ c3 ^ k1, p0
            k0 += _W0
            k1 += _W1
        words[0, i] = _u32(c0)
        words[1, i] = _u32(c1)
        words[2, i] = _u32(c2)
        words[3, i] = _u32(c3)


_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (_f32(c) for c in ref.LOG)
_LN2, _HALF, _ONE, _MINUS_TWO = _f32(ref.LN2), _f32(0.5), _f32(1.0), _f32(-2.0)
_SQRT_HALF_BITS, _I23, _I32, _U1 = _i32(ref.SQRT_HALF_BITS), _i32(23), _i32(32), _u32(1)


@jit
def _radius(words: Array, radius: Array) -> None:
    """Fill ``radius`` with sqrt(-2 ln(v / 2^32)), v = ``words`` made odd; both of shape (n,)."""
    for i in range(words.size):
        bits = _f32(_u32(words[i] | _U1)).view(np.int32)
        exponent = _i32(_i32(bits - _SQRT_HALF_BITS) >> _I23)
        f = _i32(bits - _i32(exponent << _I23)).view(np.float32) - _ONE
        square = f * f
        p = (((_L0 * f + _L1) * f + _L2) * f + _L3) * f + _L4
        p = (((p * f + _L5) * f + _L6) * f + _L7) * f + _L8
        log = (p * f) * square - _HALF * square + f
        radius[i] = np.sqrt((_f32(_i32(exponent - _I32)) * _LN2 + log) * _MINUS_TWO)


_S0, _S1, _S2 = (_f32(c) for c in ref.SIN)
_C0, _C1, _C2 = (_f32(c) for c in ref.COS)
_ANGLE = _f32(ref.ANGLE)
_UPPER, _U2 = _u32(0xFFFFFFFC), _u32(2)


@jit
def _turn(words: Array, radius: Array, first: Array, second: Array) -> None:
    """Turn ``radius`` by the angle of ``words`` into two coordinates; all of shape (n,)."""
    for i in range(words.size):
        word = words[i]
        a = _f32(_i32(word & _UPPER)) * _ANGLE
        square = a * a
        sin = (((_S0 * square + _S1) * square + _S2) * square) * a + a
        cos = (((_C0 * square + _C1) * square + _C2) * square) * square
        cos = cos - _HALF * square + _ONE
        cos = -cos if word & _U1 else cos
        swap = (word & _U2) != 0
        first[i] = radius[i] * (sin if swap else cos)
        second[i] = radius[i] * (cos if swap else sin)


@jit
def _add_gaussian(
    total: Array, c: Any, unit: int, key: np.uint64, seed: np.uint64, w: Array, z: Array
) -> None:
    """Add ``c`` times unit ``unit`` of the stream to ``total``, (UNIT,); w, z are scratch."""
    _philox(w, _u64(unit) * _u64(_WIDTH), key, seed)
    for j in range(0, 4, 2):
        _radius(w[j], z[4])
        _turn(w[j + 1], z[4], z[j], z[j + 1])
    for b in range(_BLOCKS):
        for j in range(4):
            at, lane = (b * 4 + j) * LANES, b * LANES
            row, normals = total[at : at + LANES], z[j, lane : lane + LANES]
            for i in range(LANES):
                row[i] += c * normals[i]


@jit
def _add_rademacher(
    total: Array, c: Any, unit: int, key: np.uint64, seed: np.uint64, w: Array
) -> None:
    """Add ``c`` times unit ``unit`` of the stream to ``total``, (UNIT,); w is scratch."""
    units = _BITS // _ROWS  # in a block
    words = w.reshape(-1)[:WORDS]
    _philox(words.reshape(4, LANES), _u64(unit // units) * _u64(LANES), key, seed)
    for k in range(_ROWS):
        bit = _U1 << _u32((unit % units) * _ROWS + k)
        row = total[k * WORDS : (k + 1) * WORDS]
        for i in range(WORDS):
            row[i] += -c if words[i] & bit else c


_U8, _TINY = _u32(8), _f32(2.0**-24)


@jit
def _add_uniform(
    total: Array, c: Any, unit: int, key: np.uint64, seed: np.uint64, w: Array
) -> None:
    """Add ``c`` times unit ``unit`` of the stream to ``total``, (UNIT,); w is scratch."""
    _philox(w, _u64(unit) * _u64(_WIDTH), key, ~seed)
    for b in range(_BLOCKS):
        for j in range(4):
            at, lane = (b * 4 + j) * LANES, b * LANES
            row, words = total[at : at + LANES], w[j, lane : lane + LANES]
            for i in range(LANES):
                row[i] += c * (_f32(_i32(words[i] >> _U8)) * _TINY)


@jit
def _words() -> Array:
    return np.empty((4, _WIDTH), np.uint32)


@jit
def _normals() -> Array:
    return np.empty((5, _WIDTH), np.float32)


@jit
def _sum(
    total: Array,
    law: int,
    unit: int,
    key: np.uint64,
    seeds: Array,
    coefficients: Array,
    w: Array,
    z: Array,
) -> None:
    total[:] = 0.0
    for t in range(seeds.size):
        if law == GAUSSIAN:
            _add_gaussian(total, coefficients[t], unit, key, seeds[t], w, z)
        elif law == RADEMACHER:
            _add_rademacher(total, coefficients[t], unit, key, seeds[t], w)
        else:
            _add_uniform(total, coefficients[t], unit, key, seeds[t], w)


@jit
def add_float(
    weights: Array, law: int, first: int, key: np.uint64, seeds: Array, coefficients: Array
) -> None:
    """Add the sum of the terms to float32 or float64 ``weights``, shape (n,), in place.

    ``law`` is one of LAWS, ``seeds`` uint64 and ``coefficients`` of the weights' dtype,
    of one shape (k,). The functions below do the same for 16-bit weights, seen as uint16.
    """
    total, w, z = np.empty(UNIT, coefficients.dtype), _words(), _normals()
    for unit in range(first // UNIT, (first + weights.size - 1) // UNIT + 1):
        _sum(total, law, unit, key, seeds, coefficients, w, z)
        at = unit * UNIT - first
        part = weights[max(0, at) : at + UNIT]
        change = total[max(0, -at) :]
        for i in range(part.size):
            part[i] += change[i]


_U13, _U16 = _u32(13), _u32(16)
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


@jit
def add_bfloat16(
    weights: Array, law: int, first: int, key: np.uint64, seeds: Array, coefficients: Array
) -> None:
    """Do as ``add_float`` for bfloat16; ``coefficients`` are float32."""
    total, w, z = np.empty(UNIT, np.float32), _words(), _normals()
    for unit in range(first // UNIT, (first + weights.size - 1) // UNIT + 1):
        _sum(total, law, unit, key, seeds, coefficients, w, z)
        at = unit * UNIT - first
        part = weights[max(0, at) : at + UNIT]
        change = total[max(0, -at) :]
        for i in range(part.size):
            part[i] = _to_bfloat16(_from_bfloat16(part[i]) + change[i])


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


@jit
def add_float16(
    weights: Array, law: int, first: int, key: np.uint64, seeds: Array, coefficients: Array
) -> None:
    """Do as ``add_float`` for float16; ``coefficients`` are float32."""
    total, w, z = np.empty(UNIT, np.float32), _words(), _normals()
    for unit in range(first // UNIT, (first + weights.size - 1) // UNIT + 1):
        _sum(total, law, unit, key, seeds, coefficients, w, z)
        at = unit * UNIT - first
        part = weights[max(0, at) : at + UNIT]
        change = total[max(0, -at) :]
        for i in range(part.size):
            part[i] = _to_float16(_from_float16(part[i]) + change[i])

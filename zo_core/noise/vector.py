"""Vector code for one unit of noise: what the CPU kernel runs for every 2048 elements.

A compiler vectorises neither a look-up in a small table nor a generator's rotating state well, and
both are what the time goes to. So the unit is written here lane by lane, as LLVM vectors of WIDTH
numbers, which LLVM then fits to the processor. Numba compiles it (``cpu_kernels`` calls it), so no
C compiler is needed. Only the table look-up names an instruction, by processor: ``vpermi2ps`` with
AVX-512, ``vpermps`` with AVX2, and loads elsewhere. All give the same bits.

What is made and what is done with it are independent of each other: a *law* turns words into
numbers z, a *putter* takes them to memory. LLVM contracts nothing unless told to, and it is not.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from zo_core.noise.quantile import BODY
from zo_core.noise.stream import LANES, STEPS

WIDTH = 16
_PARTS = LANES // WIDTH
_BITS = 32
UNITS = {"gaussian": 2 * STEPS * LANES, "uniform": STEPS * LANES, "rademacher": _BITS * LANES}
"""Elements that one call makes: of all steps of a block; of one step for rademacher."""

_WORD, _LONG = ir.IntType(32), ir.IntType(64)
_INTS = ir.VectorType(_WORD, WIDTH)
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_SHORTS = ir.VectorType(ir.IntType(16), WIDTH)
_HALVES = ir.VectorType(ir.HalfType(), WIDTH)


class _Bfloat(ir.Type):  # type: ignore[misc]  # why: llvmlite is untyped
    """LLVM's bfloat, which llvmlite lacks."""

    def __str__(self) -> str:
        return "bfloat"


_BFLOATS = ir.VectorType(_Bfloat(), WIDTH)

DTYPES: dict[Any, str] = {
    types.float32: "float32",
    types.uint16: "bfloat16",
    types.int16: "float16",
}
"""What an array's type says of the weights in it: numba knows no 16-bit floats."""

Value = Any


def has(feature: str) -> bool:
    """Whether numba compiles for a processor with ``feature`` (LLVM's name)."""
    told: str | None = vars(config)["CPU_FEATURES"]  # of NUMBA_CPU_FEATURES
    features = get_host_cpu_features() if told is None else told  # type: ignore[no-untyped-call]  # why: numba is untyped
    return f"+{feature}" in features.split(",")


def halves() -> bool:
    """Whether float16 can be converted: x86 processors from before 2012 can't."""
    return has("f16c") or platform.machine() not in ("x86_64", "AMD64")


class Emitter:
    """Writes vector instructions; integers among operands are meant for every lane."""

    def __init__(self, builder: Any) -> None:
        """Write at the end of what ``builder`` has written."""
        self.b = builder

    def ints(self, x: Value) -> Value:
        """Return ``x`` in every lane where it is a number."""
        return ir.Constant(_INTS, [ir.Constant(_WORD, x)] * WIDTH) if isinstance(x, int) else x

    def op(self, name: str, x: Value, y: Value) -> Value:
        """Apply an integer operation by LLVM's name."""
        return getattr(self.b, name)(self.ints(x), self.ints(y))

    def call(self, name: str, kind: ir.Type, *args: Value) -> Value:
        """Call an intrinsic of LLVM."""
        known = self.b.module.globals.get(name)
        signature = ir.FunctionType(kind, [a.type for a in args])
        return self.b.call(known or ir.Function(self.b.module, signature, name), args)

    def rotated(self, x: Value, by: int) -> Value:
        """Rotate every lane to the left."""
        return self.call("llvm.fshl.v16i32", _INTS, x, x, self.ints(by))

    def spread(self, scalar: Value) -> Value:
        """Return a float in every lane."""
        empty = ir.Constant(_FLOATS, ir.Undefined)
        first = self.b.insert_element(empty, scalar, ir.Constant(_WORD, 0))
        return self.b.shuffle_vector(first, empty, ir.Constant(_INTS, [0] * WIDTH))

    def looked_up(self, table: list[float], row: Value) -> Value:
        """Return ``table[row & 31]`` in every lane."""
        if has("avx512f"):
            name = "llvm.x86.avx512.vpermi2var.ps.512"
            return self.call(name, _FLOATS, _floats(table[:16]), row, _floats(table[16:]))
        if has("avx2"):
            return self._looked_up_by_eight(table, row)
        rows, out = self.op("and_", row, 31), ir.Constant(_FLOATS, ir.Undefined)
        values = cgutils.global_constant(  # type: ignore[no-untyped-call]  # why: numba is untyped
            self.b.module,
            "zo_quantile",
            ir.Constant(ir.ArrayType(ir.FloatType(), 32), list(_floats(table).constant)),
        )
        for lane in range(WIDTH):
            at = self.b.extract_element(rows, ir.Constant(_WORD, lane))
            loaded = self.b.load(self.b.gep(values, [ir.Constant(_WORD, 0), at]))
            out = self.b.insert_element(out, loaded, ir.Constant(_WORD, lane))
        return out

    def _looked_up_by_eight(self, table: list[float], row: Value) -> Value:
        ints, floats = ir.VectorType(_WORD, 8), ir.VectorType(ir.FloatType(), 8)
        halves = []
        for low in (0, 8):
            lanes = ir.Constant(ints, list(range(low, low + 8)))
            rows = self.b.shuffle_vector(row, row, lanes)
            found = [
                self.call("llvm.x86.avx2.permps", floats, _floats(table[at : at + 8]), rows)
                for at in range(0, 32, 8)
            ]
            for bit in (8, 16):
                mask = self.b.and_(rows, ir.Constant(ints, [bit] * 8))
                upper = self.b.icmp_unsigned("!=", mask, ir.Constant(ints, [0] * 8))
                pairs = zip(found[::2], found[1::2], strict=True)
                found = [self.b.select(upper, y, x) for x, y in pairs]
            halves += found
        return self.b.shuffle_vector(*halves, ir.Constant(_INTS, list(range(WIDTH))))


def _floats(values: list[float]) -> ir.Constant:
    kind = ir.VectorType(ir.FloatType(), len(values))
    return ir.Constant(kind, [ir.Constant(ir.FloatType(), v) for v in values])


def _next(e: Emitter, s: list[Value]) -> tuple[Value, list[Value]]:
    """Return the word of xoshiro128++ and the state after it."""
    s0, s1, s2, s3 = s
    word = e.op("add", e.rotated(e.op("add", s0, s3), 7), s0)
    s2_, s3_ = e.op("xor", s2, s0), e.op("xor", s3, s1)
    after = [
        e.op("xor", s0, s3_),
        e.op("xor", s1, s2_),
        e.op("xor", s2_, e.op("shl", s1, 9)),
        e.rotated(s3_, 11),
    ]
    return word, after


# ---------------------------------------------------------- laws: (part, word) -> place, z, lowest
# Each calls ``put(offset, z)``, offset in vectors from the first element of the step.

Put = Callable[[int, Value], None]
Law = Callable[[Emitter, int, Value, Value, Put], Value]


def _gaussian(e: Emitter, part: int, word: Value, lowest: Value, put: Put) -> Value:
    for half in (0, 1):
        magnitude = e.op("lshr", word, 15) if half else e.op("shl", word, 1)
        v = e.op("or_", e.op("and_", magnitude, 0xFFFE), 1)
        lowest = e.call("llvm.umin.v16i32", _INTS, lowest, v)
        x = e.b.sitofp(v, _FLOATS)
        row = e.op("lshr", e.b.bitcast(x, _INTS), 22)
        z = e.looked_up([r[3] for r in BODY], row)
        for power in (2, 1, 0):
            z = e.b.fadd(e.b.fmul(z, x), e.looked_up([r[power] for r in BODY], row))
        sign = e.op("and_", word if half else e.op("shl", word, 16), 1 << 31)
        put(half * _PARTS + part, e.b.bitcast(e.op("xor", e.b.bitcast(z, _INTS), sign), _FLOATS))
    return lowest


def _rademacher(e: Emitter, part: int, word: Value, lowest: Value, put: Put) -> Value:
    one = e.b.bitcast(e.spread(ir.Constant(ir.FloatType(), 1.0)), _INTS)
    for bit in range(_BITS):
        sign = e.op("and_", e.op("shl", word, 31 - bit), 1 << 31)
        put(bit * _PARTS + part, e.b.bitcast(e.op("or_", sign, one), _FLOATS))
    return lowest


def _uniform(e: Emitter, part: int, word: Value, lowest: Value, put: Put) -> Value:
    number = e.b.sitofp(e.op("lshr", word, 8), _FLOATS)
    put(part, e.b.fmul(number, e.spread(ir.Constant(ir.FloatType(), 2.0**-24))))
    return lowest


def _itself(e: Emitter, part: int, word: Value, lowest: Value, put: Put) -> Value:
    put(part, word)
    return lowest


_LAWS: dict[str, tuple[Law, int, int]] = {  # and elements of a step, steps of a call
    "gaussian": (_gaussian, 2 * LANES, STEPS),
    "rademacher": (_rademacher, _BITS * LANES, 1),
    "uniform": (_uniform, LANES, STEPS),
}

# -------------------------------------------------------------------- dtypes: to and from float32


_KINDS: dict[str, ir.Type] = {"float32": _FLOATS, "bfloat16": _SHORTS, "float16": _HALVES}


def _load(e: Emitter, dtype: str, pointer: Value) -> Value:
    align = 4 if dtype == "float32" else 2
    return e.b.load(e.b.bitcast(pointer, _KINDS[dtype].as_pointer()), align=align)


def _store(e: Emitter, dtype: str, pointer: Value, x: Value) -> None:
    align = 4 if dtype == "float32" else 2
    e.b.store(x, e.b.bitcast(pointer, _KINDS[dtype].as_pointer()), align=align)


def _widened(e: Emitter, dtype: str, x: Value) -> Value:
    if dtype == "float16":
        return e.b.fpext(x, _FLOATS)
    if dtype == "bfloat16":
        return e.b.bitcast(e.op("shl", e.b.zext(x, _INTS), 16), _FLOATS)
    return x


def _rounded(e: Emitter, dtype: str, x: Value) -> Value:
    """Round to nearest, ties to even; to zero below the normal range of bfloat16."""
    if dtype == "float16":
        return e.b.fptrunc(x, _HALVES)
    if dtype == "float32":
        return x
    if has("avx512bf16"):
        name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
        return e.b.bitcast(e.call(name, _BFLOATS, x), _SHORTS)
    bits = e.b.bitcast(x, _INTS)
    tie = e.op("and_", e.op("lshr", bits, 16), 1)
    # A NaN here comes from a bfloat16 one, or is the default one: neither overflows.
    near = e.op("lshr", e.op("add", e.op("add", bits, 0x7FFF), tie), 16)
    tiny = e.b.icmp_unsigned("==", e.op("and_", bits, 0x7F800000), e.ints(0))
    zero = e.op("lshr", e.op("and_", bits, 1 << 31), 16)
    return e.b.trunc(e.b.select(tiny, zero, near), _SHORTS)


# --------------------------------------------------------------------------- a unit, and its sums


def unit(law: str) -> Any:
    """Return a function for numba: make a unit of noise z and add it to weights.

    ``f(state, source, outs, at, c, threshold)`` writes source + c z to the first of ``outs``,
    which may be ``source``, and source - c z to the second where there are two; where abs(source)
    is above ``threshold``, unless that is None, source itself. ``state`` is uint32 (4, LANES),
    left as after the unit; the others are arrays of one dtype (see DTYPES), of which UNITS[law]
    elements from ``at`` on are meant: a slice would cost more than it looks; ``c`` and
    ``threshold`` are float32. What ``outs`` and ``threshold`` are is decided by type.

    Returns the smallest v that was looked up for a Gaussian (see ``quantile``): where it is 1, the
    elements of the outermost cell were left as they are, and are the caller's to finish.
    """
    make, row, steps = _LAWS[law]

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        e = Emitter(builder)
        put, state, _ = _prepared(e, context, signature, args)
        return _loop(e, make, row, steps, state, put)

    def typing(typing_context: Any, *args: Any) -> Any:
        return types.uint32(*args), emit

    return _spelt_out(typing)


def sums() -> Any:
    """Return a function like that of ``unit`` which adds numbers that are there instead of noise.

    In place of ``state`` it takes them, float32, as many as there are elements from ``at`` on;
    what is left of these after whole vectors is not touched. Returns how many it was done for.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        e = Emitter(builder)
        put, numbers, count = _prepared(e, context, signature, args)
        whole = builder.and_(count, ir.Constant(_LONG, -WIDTH))
        with cgutils.for_range_slice(
            builder, ir.Constant(_LONG, 0), whole, ir.Constant(_LONG, WIDTH)
        ) as (place, _):
            put(place, _load(e, "float32", builder.gep(numbers, [place])))
        return whole

    def typing(typing_context: Any, *args: Any) -> Any:
        return types.int64(*args), emit

    return _spelt_out(typing)


def words() -> Any:
    """Return a function for numba that makes the words of a block: ``f(state, out)``.

    ``state`` as for ``unit``, ``out`` uint32 of STEPS * LANES elements.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        e = Emitter(builder)
        state, out = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args, args, strict=True)
        )

        def put(place: Value, word: Value) -> None:
            at = builder.bitcast(builder.gep(out, [place]), _INTS.as_pointer())
            builder.store(word, at, align=4)

        return _loop(e, _itself, LANES, STEPS, state, put)

    def call(typing_context: Any, state: Any, out: Any) -> Any:
        return types.uint32(state, out), emit

    return intrinsic(call)


def _spelt_out(typing: Any) -> Any:
    # Numba counts the arguments.
    def call(t: Any, state: Any, source: Any, outs: Any, at: Any, c: Any, threshold: Any) -> Any:
        return typing(t, state, source, outs, at, c, threshold)

    return intrinsic(call)


Putter = Callable[[Value, Value], None]
"""Takes a place and a vector of noise, and writes what becomes of the weights there."""


def _prepared(e: Emitter, context: Any, signature: Any, args: Any) -> tuple[Putter, Value, Value]:
    """Return what writes, the memory of the first argument, and how many elements there are."""
    numbers, source, outs, _, _, bound = signature.args
    arrays = [(numbers, args[0]), (source, args[1])]
    sides = cgutils.unpack_tuple(e.b, args[2])  # type: ignore[no-untyped-call]  # why: numba is untyped
    arrays += [(outs.dtype, out) for out in sides]
    made = [context.make_array(kind)(context, e.b, value) for kind, value in arrays]
    data = [e.b.gep(array.data, [args[3]]) for array in made[1:]]
    threshold = None if bound is types.none else e.spread(args[5])
    put = _putter(e, DTYPES[source.dtype], data, e.spread(args[4]), threshold)
    return put, made[0].data, e.b.sub(made[1].nitems, args[3])


def _putter(e: Emitter, dtype: str, data: list[Value], c: Value, threshold: Value) -> Putter:
    def put(place: Value, z: Value) -> None:
        source, *outs = (e.b.gep(pointer, [place]) for pointer in data)
        raw = _load(e, dtype, source)
        old = _widened(e, dtype, raw)
        change = e.b.fmul(z, c)
        for out, add in zip(outs, (e.b.fadd, e.b.fsub), strict=False):
            new = _rounded(e, dtype, add(old, change))
            if threshold is not None:
                size = e.b.bitcast(e.op("and_", e.b.bitcast(old, _INTS), 0x7FFFFFFF), _FLOATS)
                new = e.b.select(e.b.fcmp_ordered("<=", size, threshold), new, raw)
            _store(e, dtype, out, new)

    return put


def _loop(e: Emitter, make: Law, row: int, steps: int, state: Value, put: Putter) -> Value:
    """Run ``steps`` steps of all lanes; the state is in registers meanwhile."""
    b = e.b
    vectors = b.bitcast(state, _INTS.as_pointer())
    places = [
        [b.gep(vectors, [ir.Constant(_LONG, word * _PARTS + part)]) for word in range(4)]
        for part in range(_PARTS)
    ]
    before = [[b.load(p, align=4) for p in part] for part in places]
    start, body, done = b.block, b.append_basic_block("step"), b.append_basic_block("done")
    b.branch(body)
    b.position_at_end(body)
    step, lowest = b.phi(_LONG), b.phi(_INTS)
    step.add_incoming(ir.Constant(_LONG, 0), start)
    lowest.add_incoming(e.ints(0xFFFF), start)
    states = [[b.phi(_INTS) for _ in part] for part in before]
    first = b.mul(step, ir.Constant(_LONG, row))
    low, after = lowest, []
    for part, now in enumerate(states):
        word, then = _next(e, now)
        after.append(then)

        def put_at(offset: int, z: Value) -> None:
            put(b.add(first, ir.Constant(_LONG, offset * WIDTH)), z)

        low = make(e, part, word, low, put_at)
    for phis, old, new in zip(states, before, after, strict=True):
        for phi, x, y in zip(phis, old, new, strict=True):
            phi.add_incoming(x, start)
            phi.add_incoming(y, b.block)
    lowest.add_incoming(low, b.block)
    following = b.add(step, ir.Constant(_LONG, 1))
    step.add_incoming(following, b.block)
    b.cbranch(b.icmp_unsigned("<", following, ir.Constant(_LONG, steps)), body, done)
    b.position_at_end(done)
    for part_places, part_after in zip(places, after, strict=True):
        for place, value in zip(part_places, part_after, strict=True):
            b.store(value, place, align=4)
    return e.call("llvm.vector.reduce.umin.v16i32", _WORD, low)

"""The CPU kernel of ``low_rank``: same operations, same order, same bits.

A row of the product is summed up in a buffer that stays in the cache, and is added to a row of
weights. Numba keeps it on disk together with what it calls: touch this file when ``cpu_kernels``
or ``vector`` change.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zo_core.noise import cpu
from zo_core.noise.cpu_kernels import (
    _apply,
    _array_at,
    _carray,
    _counted,
    _part,
    _sides,
    compiled_for_team,
    jit,
)
from zo_core.noise.low_rank import Product

Array = np.ndarray[Any, Any]

_f32 = np.float32
_ZERO = _f32(0.0)
_COLUMNS = 4096
_ALONE = 1 << 16  # elements that a thread finishes sooner than it hands them over


@jit
def _begin(total: Array, c: Any, factor: Array) -> None:
    for k in range(total.size):
        total[k] = _ZERO + c * factor[k]


@jit
def _begin_two(total: Array, c: Any, factor: Array, d: Any, second: Array) -> None:
    for k in range(total.size):
        total[k] = (_ZERO + c * factor[k]) + d * second[k]


@jit
def _add(total: Array, c: Any, factor: Array) -> None:
    for k in range(total.size):
        total[k] += c * factor[k]


@jit
def _rows(source: Array, outs: Any, u: Array, v: Array) -> None:
    """Write whole rows: ``source`` and outs (m * n,), ``u`` (m, r) and ``v`` (r, n) float32."""
    columns = v.shape[1]
    buffer = np.empty(min(columns, _COLUMNS), np.float32)
    for row in range(u.shape[0]):
        for start in range(0, columns, _COLUMNS):
            end = min(start + _COLUMNS, columns)
            total = buffer[: end - start]
            if u.shape[1] == 1:
                _begin(total, u[row, 0], v[0, start:end])
            else:
                _begin_two(total, u[row, 0], v[0, start:end], u[row, 1], v[1, start:end])
            for j in range(2, u.shape[1]):
                _add(total, u[row, j], v[j, start:end])
            low = row * columns + start
            high = low + total.size
            _apply(source[low:high], _part(outs, low, high), total, None)


HEAD, ROW = 4, 8
"""Numbers of a job's head, and of a row of it."""


@jit
def write_rows(job: Array, like: Array, two: Any) -> None:
    """Write rows of matrices of the dtype of ``like`` until none is left; see ``cpu.share``.

    The head of ``job``, uint64, is how many parts are taken, and done, how many numbers there are,
    and parts. A part is where the source, its outs, U and V laid out as (r, n) begin (the second
    out is written where ``two`` is not None), and how many elements, columns and ranks there are.
    """
    factors = np.empty(0, np.float32)
    while True:
        taken = np.int64(_counted(job))
        if taken >= np.int64(job[3]):
            return
        part = job[HEAD + taken * ROW : HEAD + (taken + 1) * ROW]
        size, columns, rank = np.int64(part[3]), np.int64(part[6]), np.int64(part[7])
        rows = size // columns
        source = _array_at(like, part[0], size)
        u = _array_at(factors, part[4], rows * rank).reshape(rows, rank)
        v = _array_at(factors, part[5], rank * columns).reshape(rank, columns)
        _rows(source, _sides(like, part, two), u, v)
        _counted(job[1:])


@functools.cache
def _team_of(kind: type, two: bool) -> Any:
    """Return ``write_rows`` as a C function, as ``cpu_kernels.team_of`` does."""
    some = True if two else None

    def work(job: Any) -> None:
        length = _carray(job, (HEAD,), np.uint64)[2]
        write_rows(_carray(job, (length,), np.uint64), _carray(job, (0,), kind), some)

    return compiled_for_team(work)


def write(products: Sequence[Product]) -> None:
    """Do as ``low_rank.write`` on as many threads as torch has; scratch is V again, and 16 KiB."""
    kinds: dict[tuple[torch.dtype, int], list[Product]] = {}
    for one in products:
        kinds.setdefault((one.source.dtype, len(one.outs)), []).append(one)
    for some in kinds.values():
        _write(some)


def in_rows(v: Tensor) -> Tensor:
    """Return (n, r) as (r, n), contiguous; torch's own way takes a buffer for large ones."""
    rows = v.new_empty(v.shape[1], v.shape[0])
    for row, column in zip(rows, v.unbind(1), strict=True):
        row.copy_(column)
    return rows


def _write(products: Sequence[Product]) -> None:
    laid_out = [in_rows(one.v.detach()) for one in products]
    work = sum(one.source.numel() for one in products)
    threads = max(1, min(torch.get_num_threads(), work // _ALONE))
    longest = max(_ALONE // 2, work // (cpu.TURNS * threads))
    parts: list[tuple[int, ...]] = []
    for (source, outs, u, _), v in zip(products, laid_out, strict=True):
        columns, rank = source.shape[1], u.shape[1]
        first, second = outs[0].data_ptr(), outs[-1].data_ptr()
        rows, item = max(1, longest // columns), source.itemsize
        for low in range(0, len(source), rows):
            size, at = min(rows, len(source) - low) * columns, low * columns * item
            row_of_u = u.data_ptr() + low * rank * u.itemsize
            ends = source.data_ptr() + at, first + at, second + at
            parts.append((*ends, size, row_of_u, v.data_ptr(), columns, rank))
    job = np.empty(HEAD + ROW * len(parts), np.uint64)
    job[:HEAD] = 0, 0, job.size, len(parts)
    job[HEAD:] = np.array(parts, np.uint64).reshape(-1)
    like, two = cpu._array(products[0].source.view(-1)[:0]), len(products[0].outs) == 2 or None

    def work_on(*_: int) -> None:
        if products and laid_out:  # why: see cpu.share
            write_rows(job, like, two)

    cpu.share(
        job, len(parts), threads, lambda: _team_of(like.dtype.type, two is not None), work_on
    )
    torch.autograd.graph.increment_version([out for one in products for out in one.outs])

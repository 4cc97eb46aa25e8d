"""The CPU kernel of ``low_rank``: same operations, same order, same bits.

A row of the product is summed up in a buffer that stays in the cache, and is added to a row of
weights. Numba keeps it on disk together with what it calls: touch this file when ``cpu_kernels``
or ``vector`` change.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zo_core.noise import cpu
from zo_core.noise.cpu_kernels import _apply, _part, jit

Array = np.ndarray[Any, Any]

_f32 = np.float32
_ZERO = _f32(0.0)
_COLUMNS = 4096
_ROWS = 16  # of weights at least that a thread gets


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


def write(source: Tensor, outs: Sequence[Tensor], u: Tensor, v: Tensor) -> None:
    """Do as ``low_rank.write`` on as many threads as torch has; scratch is V again, and 16 KiB."""
    columns = source.shape[1]
    arrays = [cpu._array(t.view(-1)) for t in (source, *outs)]
    left, right = u.detach().numpy(), v.detach().t().contiguous().numpy()
    threads = min(torch.get_num_threads(), max(1, len(source) // _ROWS))
    edges = [len(source) * i // threads for i in range(threads + 1)]

    def work(low: int, high: int) -> None:
        part, *parts = (a[low * columns : high * columns] for a in arrays)
        _rows(part, tuple(parts), left[low:high], right)

    cpu._run(work, list(itertools.pairwise(edges)))
    for out in outs:
        torch.autograd.graph.increment_version(out)

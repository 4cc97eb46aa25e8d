"""The CPU kernel of ``rows``: that of ``cpu_kernels``, row by row.

Numba keeps it on disk together with what it calls: touch this file when ``cpu_kernels`` or
``vector`` change.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zo_core.base import Term
from zo_core.noise import cpu, cpu_kernels
from zo_core.noise.cpu_kernels import _part, jit

Array = np.ndarray[Any, Any]

_ALONE = 64  # rows that a thread finishes sooner than it hands them over
_write = cpu_kernels.write


@jit
def _rows(
    source: Array,
    rows: Array,
    columns: int,
    outs: Any,
    threshold: Any,
    law: int,
    key: np.uint64,
    seeds: Array,
    coefficients: Array,
) -> None:
    """Write ``rows``, (k,) int64, of ``source``, (m * columns,), to outs of (k * columns,)."""
    for place in range(rows.size):
        low, begin = rows[place] * columns, place * columns
        to = _part(outs, begin, begin + columns)
        row = source[low : low + columns]
        _write(row, to, threshold, law, low, key, seeds, coefficients)


def write(
    matrix: Tensor,
    rows: Tensor,
    outs: Sequence[Tensor],
    name: str,
    key: int,
    terms: Sequence[Term],
    threshold: float | None,
) -> None:
    """Do as ``rows.write`` on as many threads as torch has."""
    stream, columns = cpu._stream(name, key, terms, matrix.dtype), matrix.shape[1]
    source, *arrays = (cpu._array(t.view(-1)) for t in (matrix, *outs))
    bound = None if threshold is None else stream.wide(threshold)
    wanted = rows.detach().contiguous().numpy()

    def work(low: int, high: int) -> None:
        to = tuple(a[low * columns : high * columns] for a in arrays)
        _rows(source, wanted[low:high], columns, to, bound, stream.law, *stream.rest)

    threads = max(1, min(torch.get_num_threads(), len(wanted) // _ALONE))
    edges = [len(wanted) * i // threads for i in range(threads + 1)]
    cpu._run(work, list(itertools.pairwise(edges)))
    for out in outs:
        torch.autograd.graph.increment_version(out)

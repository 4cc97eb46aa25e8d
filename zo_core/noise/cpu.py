"""The CPU kernel: the noise of ``reference``, to the bit, some two hundred times as fast.

Compiled by numba, an optional dependency, on the first call and kept on disk from then on. The
work is cut into ranges for as many threads as torch has; a range is a function of the stream and
of nothing else, so the result does not depend on how many there are.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from zo_core.base import Term
from zo_core.noise.stream import WORDS

if TYPE_CHECKING:
    import numpy as np

_ALIGN = 32 * WORDS  # ranges start where a block starts, whatever the law
_ALONE = 1 << 18  # elements that a thread finishes sooner (0.1 ms) than it hands them over
_MASK = (1 << 64) - 1


@functools.cache
def available() -> str | None:
    """Return None where the kernel can be used, else why not, in one line."""
    if find_spec("numba") is None:
        return "numba is not installed; pip install 'zometer[fast]'"
    try:
        _kernels()
    except Exception as error:  # a broken or mismatched installation fails in many ways
        return f"numba does not load ({type(error).__name__}: {str(error).splitlines()[0]})"
    return None


@functools.cache
def _dtypes() -> tuple[torch.dtype, ...]:
    always = (torch.float32, torch.bfloat16, torch.float64)
    if available() is None and not _kernels().halves():
        return always
    return (*always, torch.float16)


def takes(flat: Tensor) -> bool:
    """Whether ``flat`` is a real (not fake, not meta) contiguous CPU tensor of a known dtype."""
    return (
        type(flat) in (Tensor, torch.nn.Parameter)
        and flat.device.type == "cpu"
        and flat.dtype in _dtypes()
        and flat.is_contiguous()
    )


def write(
    source: Tensor,
    outs: Sequence[Tensor],
    name: str,
    key: int,
    terms: Sequence[Term],
    first: int = 0,
    threshold: float | None = None,
) -> None:
    """Write ``source`` plus (and minus) ``sum_k c_k noise(seed_k)``, as ``reference.write`` does.

    Scratch is 40 KiB a thread. Runs on ``torch.get_num_threads()`` threads without the GIL.
    """
    kernels, stream = _kernels(), _stream(name, key, terms, source.dtype)
    double = source.dtype == torch.float64
    bound = None if threshold is None else stream.wide(threshold)
    arrays = tuple(_array(t) for t in (source, *outs))
    kernel = kernels.write_float64 if double else kernels.write

    def work(low: int, high: int) -> None:
        part, *parts = (a[low:high] for a in arrays)
        kernel(part, tuple(parts), bound, stream.law, first + low, *stream.rest)

    _run(work, _ranges(source.numel(), first, torch.get_num_threads()))
    for out in outs:
        torch.autograd.graph.increment_version(out)


class Flat(NamedTuple):
    """A tensor of shape (n,), the key of its stream, and the place of its first element."""

    tensor: Tensor
    key: int
    first: int


def add_(flats: Sequence[Flat], name: str, terms: Sequence[Term]) -> None:
    """Add ``sum_k c_k noise(seed_k)`` to many tensors in place; ``takes`` holds for each.

    One call a thread, each with an equal share of all elements.
    """
    by_dtype: dict[torch.dtype, list[Flat]] = {}
    for flat in flats:
        by_dtype.setdefault(flat.tensor.dtype, []).append(flat)
    for dtype, some in by_dtype.items():
        if dtype == torch.float64:
            for flat in some:
                write(flat.tensor, (flat.tensor,), name, flat.key, terms, flat.first)
        else:
            _add_(some, name, terms)


def _add_(flats: Sequence[Flat], name: str, terms: Sequence[Term]) -> None:
    import numpy as np

    like = flats[0].tensor
    stream = _stream(name, 0, terms, like.dtype)
    none = _array(like[:0])
    tables = [np.array(rows, np.uint64) for rows in _shares(flats, torch.get_num_threads())]

    def work(number: int, _: int) -> None:
        _kernels().write_table(none, tables[number], stream.law, *stream.rest[1:])

    _run(work, [(number, 0) for number in range(len(tables))])
    for flat in flats:
        torch.autograd.graph.increment_version(flat.tensor)


def _shares(flats: Sequence[Flat], threads: int) -> list[list[tuple[int, int, int, int]]]:
    """Cut all elements into at most ``threads`` equal shares: rows of ``write_table``."""
    total = sum(flat.tensor.numel() for flat in flats)
    pieces = max(1, min(threads, total // _ALONE))
    borders = [total * i // pieces for i in range(1, pieces)]
    shares: list[list[tuple[int, int, int, int]]] = [[] for _ in range(pieces)]
    seen = 0
    for flat in flats:
        count = flat.tensor.numel()
        share = sum(border <= seen for border in borders)
        inside = [border - seen for border in borders if seen < border < seen + count]
        for low, high in itertools.pairwise([0, *_aligned(inside, flat.first), count]):
            at = flat.tensor.data_ptr() + low * flat.tensor.itemsize
            if low < high:
                shares[share].append((at, high - low, flat.first + low, flat.key & _MASK))
            share += 1
        seen += count
    return [rows for rows in shares if rows]


def _aligned(cuts: Sequence[int], first: int) -> list[int]:
    """Move cuts of a tensor, whose first place is ``first``, back to where a block begins."""
    return [max(0, (first + cut) // _ALIGN * _ALIGN - first) for cut in cuts]


def write_rounded(
    flat: Tensor, name: str, key: int, terms: Sequence[Term], rounding: int, first: int = 0
) -> None:
    """Add ``sum_k c_k noise(seed_k)`` to 16-bit ``flat``, as ``reference.write_rounded`` does."""
    import numpy as np

    kernels, stream, weights = _kernels(), _stream(name, key, terms, flat.dtype), _array(flat)
    seed = np.uint64(rounding & _MASK)

    def work(low: int, high: int) -> None:
        kernels.write_rounded(weights[low:high], seed, stream.law, first + low, *stream.rest)

    _run(work, _ranges(flat.numel(), first, torch.get_num_threads()))
    torch.autograd.graph.increment_version(flat)


class _Stream(NamedTuple):
    """What every kernel takes: the law's number, and key, seeds and coefficients."""

    law: int
    wide: Any
    rest: tuple[Any, ...]


def _stream(name: str, key: int, terms: Sequence[Term], dtype: torch.dtype) -> _Stream:
    import numpy as np

    wide = np.float64 if dtype == torch.float64 else np.float32
    seeds = np.array([t.seed & _MASK for t in terms], dtype=np.uint64)
    coefficients = np.array([t.coefficient for t in terms], dtype=wide)
    return _Stream(_kernels().LAWS[name], wide, (np.uint64(key & _MASK), seeds, coefficients))


def _array(flat: Tensor) -> np.ndarray[Any, Any]:
    """Return the memory of ``flat``, typed as ``vector.DTYPES`` says."""
    import numpy as np

    data = flat.detach()
    if data.dtype == torch.bfloat16:
        return data.view(torch.int16).numpy().view(np.uint16)
    return (data.view(torch.int16) if data.dtype == torch.float16 else data).numpy()


def _ranges(count: int, first: int, threads: int) -> list[tuple[int, int]]:
    """Cut ``count`` elements from place ``first`` on into at most ``threads`` ranges."""
    pieces = max(1, min(threads, count // _ALONE))
    cuts = [count * i // pieces for i in range(1, pieces)]
    edges = [0, *_aligned(cuts, first), count]
    return [(low, high) for low, high in itertools.pairwise(edges) if low < high]


def _run(work: Callable[[int, int], None], ranges: Sequence[tuple[int, int]]) -> None:
    if len(ranges) < 2:
        for low, high in ranges:
            work(low, high)
        return
    pool = _pool(torch.get_num_threads() - 1, os.getpid())
    others = [pool.submit(work, low, high) for low, high in ranges[1:]]
    work(*ranges[0])
    for future in others:
        future.result()


@functools.lru_cache(maxsize=1)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Keep the helpers of this thread; a forked child (another ``process``) gets its own."""
    return ThreadPoolExecutor(workers, thread_name_prefix="zo-noise")


def _kernels() -> ModuleType:
    """Import numba and the kernels now: about a second, and some 100 MiB, on the first call."""
    from zo_core.noise import cpu_kernels

    return cpu_kernels
